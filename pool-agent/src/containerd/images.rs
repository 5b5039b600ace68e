//! From an image's name to what a container needs of it: what containerd has already, else pulled; then unpacked.
//! Source: OCI image spec 1.1 (index, manifest, config, chain ids).

use std::sync::Arc;

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{GetImageRequest, ReadContentRequest};
use containerd_client::types::Descriptor;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use trust::digest::Digest;

use super::grpc::{BOOKS, failed, locked};
use super::{Accounts, Containerd, ContainersError, Progress, accounts};
use crate::image::ImageRef;

/// A manifest or config is no larger; the registries' own limit is 4 MiB.
const DOCUMENT: usize = 8 << 20;
/// The accounts of so many images are remembered.
const REMEMBERED: usize = 64;

/// An image that is ready to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its full name.
    pub name: String,
    /// Of its manifest for this machine, `sha256:…`.
    pub digest: String,
    /// The snapshot of its layers; empty where it has none.
    pub chain: String,
    /// How it wants to be run.
    pub config: ImageConfig,
}

/// How an image wants to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// The program; `Cmd` are its first arguments.
    #[serde(deserialize_with = "null_is_empty")]
    pub entrypoint: Vec<String>,
    /// The command, or the arguments of the entry point.
    #[serde(deserialize_with = "null_is_empty")]
    pub cmd: Vec<String>,
    /// `NAME=value`.
    #[serde(deserialize_with = "null_is_empty")]
    pub env: Vec<String>,
    /// Where it starts; empty for `/`.
    pub working_dir: String,
    /// `user[:group]`, by name or number; empty for root.
    pub user: String,
    /// Asks it to end; empty for SIGTERM.
    pub stop_signal: String,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(of: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(of)?.unwrap_or_default())
}

/// An index or a manifest: which of both, its members say.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    manifests: Vec<Listed>,
    config: Option<Blob>,
    #[serde(default)]
    layers: Vec<Blob>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

/// Something in the content store.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Blob {
    media_type: String,
    pub digest: String,
    size: i64,
}

impl Blob {
    pub fn descriptor(&self) -> Descriptor {
        let Self { media_type, digest, size } = self.clone();
        Descriptor { media_type, digest, size, ..Descriptor::default() }
    }
}

#[derive(Debug, Deserialize)]
struct ConfigFile {
    architecture: String,
    os: String,
    #[serde(default)]
    config: Option<ImageConfig>,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// What is in the content store of an image.
pub(super) struct Content {
    pub manifest: String,
    pub config_blob: String,
    pub layers: Vec<Layer>,
    pub config: ImageConfig,
}

/// A layer, packed and unpacked.
pub(super) struct Layer {
    pub blob: Blob,
    /// The digest of the tar.
    pub diff: String,
    /// The name of the snapshot up to here.
    pub chain: String,
}

impl Containerd {
    pub(super) async fn find_or_pull(&self, reference: &str, progress: Progress) -> Result<Image, ContainersError> {
        let name = reference.parse::<ImageRef>()?.full();
        let lease = self.lease().await?;
        let image = async {
            let content = match self.local(&name).await? {
                Some(content) => content,
                None => {
                    self.pull(&name, progress).await?;
                    self.local(&name).await?.ok_or_else(|| ContainersError::ImageNotFound(name.clone()))?
                }
            };
            self.unpack(&name, &content, &lease).await?;
            let chain = content.layers.last().map(|layer| layer.chain.clone()).unwrap_or_default();
            Ok(Image { name, digest: content.manifest, chain, config: content.config })
        }
        .await;
        lease.end(self).await;
        image
    }

    /// What is in the content store; `None` where the image, or a document of it, is not.
    async fn local(&self, name: &str) -> Result<Option<Content>, ContainersError> {
        match self.content(name).await {
            Err(error) if error.is_not_found() => Ok(None),
            other => other.map(Some),
        }
    }

    async fn content(&self, name: &str) -> Result<Content, ContainersError> {
        let unusable = |why: &str| ContainersError::ImageUnusable { image: name.to_owned(), why: why.to_owned() };
        let request = self.request(GetImageRequest { name: name.to_owned() }, BOOKS);
        let found = ImagesClient::new(self.channel().await?).get(request).await;
        let found = found.map_err(|status| self.meaning(&status, name, "looking for the image", BOOKS))?;
        let target = found.into_inner().image.and_then(|image| image.target);
        let mut digest = target.ok_or_else(|| unusable("containerd has no target of it"))?.digest;
        let mut document: Document = self.document(name, &digest).await?;
        if document.config.is_none() {
            digest = of_this_machine(&document.manifests)
                .ok_or_else(|| unusable(&format!("it has nothing for linux/{}", architecture())))?;
            document = self.document(name, &digest).await?;
        }
        let config_blob = document.config.ok_or_else(|| unusable("its manifest names no config"))?.digest;
        let file: ConfigFile = self.document(name, &config_blob).await?;
        if file.os != "linux" || file.architecture != architecture() {
            let (os, its) = (file.os, file.architecture);
            return Err(unusable(&format!("it is for {os}/{its}, and this machine is linux/{}", architecture())));
        }
        let layers = layers(document.layers, &file.rootfs.diff_ids)
            .ok_or_else(|| unusable("its layers do not match its config"))?;
        Ok(Content { manifest: digest, config_blob, layers, config: file.config.unwrap_or_default() })
    }

    async fn document<T: DeserializeOwned>(&self, name: &str, digest: &str) -> Result<T, ContainersError> {
        let unusable = |why: String| ContainersError::ImageUnusable { image: name.to_owned(), why };
        let request = self.request(ReadContentRequest { digest: digest.to_owned(), ..Default::default() }, BOOKS);
        let failed = |status| self.meaning(&status, digest, "reading the image", BOOKS);
        let mut parts = ContentClient::new(self.channel().await?).read(request).await.map_err(failed)?.into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = parts.message().await.map_err(failed)? {
            bytes.extend(part.data);
            if bytes.len() > DOCUMENT {
                return Err(unusable(format!("{digest} is larger than {} MiB", DOCUMENT >> 20)));
            }
        }
        serde_json::from_slice(&bytes).map_err(|error| unusable(format!("{digest}: {error}")))
    }

    pub(super) async fn accounts_of(&self, image: &Image) -> Result<Arc<Accounts>, ContainersError> {
        // A chain id names content: what it says never changes.
        if let Some(known) = locked(&self.accounts).get(&image.chain) {
            return Ok(known.clone());
        }
        let lease = self.lease().await?;
        let read = async {
            let (key, mounts) = self.view(&image.chain, &lease).await?;
            let read = accounts::read(mounts).await;
            self.remove_snapshot(&key).await?;
            read.map_err(|error| failed(format!("reading the users of image {}", image.name), error))
        }
        .await;
        lease.end(self).await;
        let read = Arc::new(read?);
        let mut known = locked(&self.accounts);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(image.chain.clone(), read.clone());
        Ok(read)
    }
}

/// This machine's, in the words of images.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The manifest for this machine, else the first that does not say for which.
fn of_this_machine(manifests: &[Listed]) -> Option<String> {
    let ours = |listed: &&Listed| {
        listed.platform.as_ref().is_some_and(|its| its.os == "linux" && its.architecture == architecture())
    };
    let open = |listed: &&Listed| listed.platform.is_none();
    manifests.iter().find(ours).or_else(|| manifests.iter().find(open)).map(|listed| listed.digest.clone())
}

/// Each layer with the name of the snapshot up to it; `None` where there are not as many blobs as diffs.
fn layers(blobs: Vec<Blob>, diffs: &[String]) -> Option<Vec<Layer>> {
    if blobs.len() != diffs.len() {
        return None;
    }
    let mut chain = String::new();
    let layer = |(blob, diff): (Blob, &String)| {
        chain =
            if chain.is_empty() { diff.clone() } else { Digest::of(format!("{chain} {diff}").as_bytes()).to_string() };
        Layer { blob, diff: diff.clone(), chain: chain.clone() }
    };
    Some(blobs.into_iter().zip(diffs).map(layer).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_for_this_machine_is_taken_and_no_other() {
        let listed = |digest: &str, platform: Option<(&str, &str)>| Listed {
            digest: digest.to_owned(),
            platform: platform.map(|(os, architecture)| Platform { os: os.into(), architecture: architecture.into() }),
        };
        let ours = || listed("ours", Some(("linux", architecture())));
        let other = || listed("other", Some(("linux", "s390x")));
        let proof = || listed("proof", Some(("unknown", "unknown")));
        for (manifests, taken) in [
            (vec![other(), proof(), ours()], Some("ours")),
            (vec![listed("open", None), ours()], Some("ours")),
            (vec![other(), listed("open", None)], Some("open")),
            (vec![other(), proof()], None),
            (vec![], None),
        ] {
            assert_eq!(of_this_machine(&manifests).as_deref(), taken, "{manifests:?}");
        }
    }

    #[test]
    fn snapshots_are_named_by_all_layers_up_to_them() {
        let blob = || Blob { media_type: String::new(), digest: String::new(), size: 0 };
        let diffs = ["sha256:aa".to_owned(), "sha256:bb".to_owned(), "sha256:cc".to_owned()];
        let layers = layers(vec![blob(), blob(), blob()], &diffs).unwrap();
        let two = Digest::of(b"sha256:aa sha256:bb").to_string();
        let three = Digest::of(format!("{two} sha256:cc").as_bytes()).to_string();
        assert_eq!(layers.iter().map(|l| l.chain.clone()).collect::<Vec<_>>(), ["sha256:aa".to_owned(), two, three]);
        assert!(super::layers(vec![blob()], &diffs).is_none());
    }

    #[test]
    fn a_config_may_leave_out_or_null_whatever_it_likes() {
        for (text, cmd) in [
            ("{}", vec![]),
            (r#"{"Cmd":null,"Entrypoint":null,"Env":null}"#, vec![]),
            (r#"{"Cmd":["a"],"User":"1000","Labels":{"x":"y"}}"#, vec!["a"]),
        ] {
            assert_eq!(serde_json::from_str::<ImageConfig>(text).unwrap().cmd, cmd, "{text}");
        }
    }
}
