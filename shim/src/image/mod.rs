//! Which image a sandbox is made from. containerd tells a shim nothing of it, but answers whoever asks (`containerd`, in a child:
//! `errand`). Asked while the backend makes the sandbox, so that nobody waits for it, and never a reason to fail: what could not
//! be found out is attested as such.

mod containerd;
mod grpc;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use trust::attestation::predicate::Image;
use trust::digest::Digest;

use crate::backend::Place;
use crate::errand::{self, Errand, NoAnswer};

/// What the child is called by.
pub const ACTION: &str = "image";
/// What containerd may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// The name of its image, which CRI gives a container.
const CRI_IMAGE_NAME: &str = "io.kubernetes.cri.image-name";
/// A name that is longer, in bytes, is not repeated in a statement.
const LONGEST: usize = 512;

/// Which container.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Question {
    /// containerd's gRPC socket.
    address: String,
    /// containerd's namespace.
    namespace: String,
    /// The container.
    id: String,
}

/// What containerd has in its records.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Recorded {
    name: String,
    digest: String,
    media_type: String,
}

/// A question that is under way.
pub struct Asked {
    errand: Result<Errand, NoAnswer>,
    annotated: Option<(String, Digest)>,
}

impl Asked {
    /// Asks about the container that a pod begins with, and that has this spec.
    pub fn about(place: &Place, spec: &Value) -> Self {
        let Place { address, namespace, group, .. } = place.clone();
        Self { errand: Errand::start(ACTION, &Question { address, namespace, id: group }), annotated: annotated(spec) }
    }

    /// The answer; what containerd does not say is taken from an annotation, if that names a digest.
    pub async fn image(self) -> Image {
        let heard = match self.errand {
            Ok(errand) => errand.answer::<Recorded>(PATIENCE).await.map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match (heard.and_then(believed), self.annotated) {
            (Ok(image), _) => image,
            (Err(reason), Some((name, digest))) => {
                tracing::warn!(reason, "the image is attested as its annotation names it");
                Image::Annotation { name, digest }
            }
            (Err(reason), None) => {
                tracing::warn!(reason, "the image is attested as unknown");
                Image::Unknown {}
            }
        }
    }
}

/// The child: asks, and says what it was told.
pub fn run() -> Result<(), Box<dyn std::error::Error>> {
    errand::run(containerd::ask, PATIENCE)
}

/// What containerd says, fit for a statement.
fn believed(recorded: Recorded) -> Result<Image, String> {
    let Recorded { name, digest, media_type } = recorded;
    let digest = digest.parse().map_err(|e| format!("containerd's digest {digest:?} of the image: {e}"))?;
    if let Some(text) = [&name, &media_type].into_iter().find(|text| !presentable(text)) {
        return Err(format!("{text:?}: what an image is called is printable, and up to {LONGEST} bytes"));
    }
    Ok(Image::Containerd { name, digest, media_type })
}

/// `NAME@sha256:HEX` of the annotation.
fn annotated(spec: &Value) -> Option<(String, Digest)> {
    let name = spec.get("annotations")?.get(CRI_IMAGE_NAME)?.as_str().filter(|name| presentable(name))?;
    let (_, digest) = name.rsplit_once('@')?;
    Some((name.to_owned(), digest.parse().ok()?))
}

fn presentable(text: &str) -> bool {
    (1..=LONGEST).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_annotation_counts_only_with_a_digest() {
        let digest = Digest::of(b"image");
        let pinned = format!("registry.example.org:5000/a/b:1@{digest}");
        for (name, expected) in [
            (pinned.as_str(), Some((pinned.clone(), digest))),
            ("busybox:1", None),
            ("busybox@sha256:12", None),
            (&format!("busy box@{digest}"), None),
            (&format!("{}@{digest}", "x".repeat(500)), None),
            ("", None),
        ] {
            assert_eq!(annotated(&json!({"annotations": {CRI_IMAGE_NAME: name}})), expected, "{name}");
        }
        assert_eq!(annotated(&json!({})), None);
    }

    #[test]
    fn what_containerd_says_is_attested_only_where_it_fits_a_statement() {
        let of = |name: &str, digest: &str| {
            let (name, digest) = (name.to_owned(), digest.to_owned());
            believed(Recorded { name, digest, media_type: "application/vnd.oci.image.index.v1+json".into() })
        };
        let digest = Digest::of(b"image");
        let image = of("busybox", &digest.to_string()).unwrap();
        assert_eq!((image.name(), image.digest()), (Some("busybox"), Some(digest)));
        for (name, digest, why) in [
            ("busybox", "sha512:00", "sha512"),
            ("busybox", "", "digest"),
            ("", &digest.to_string(), "printable"),
            ("\u{1b}[2J", &digest.to_string(), "printable"),
        ] {
            assert!(of(name, digest).unwrap_err().contains(why), "{name} {digest}");
        }
    }
}
