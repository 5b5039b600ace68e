//! Checkpoint: a sandbox's state into a directory. Create with a checkpoint's path restores it (`create`).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use containerd_shim_protos::api::CheckpointTaskRequest;
use containerd_shim_protos::events::task as ev;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::oci::CheckpointOptions;
use trust::audit::Event;
use trust::digest::Digest;

use crate::error::TaskError;
use crate::task::Phase;
use crate::tasks::{Key, Pod};

/// Saves the task's sandbox; it goes on running unless the options say `exit`.
pub async fn checkpoint(pod: &Pod, req: CheckpointTaskRequest) -> Result<(), TaskError> {
    let key = Key::init(&req.id);
    let phase = pod.with(&key, |p| p.phase)?;
    if !matches!(phase, Phase::Running | Phase::Paused) {
        return Err(TaskError::WrongPhase { verb: "checkpoint", what: key.to_string(), phase });
    }
    let image = Path::new(&req.path);
    if fs::read_dir(image).is_ok_and(|mut files| files.next().is_some()) {
        return Err(TaskError::AlreadyExists(format!(
            "something in {}, where the checkpoint should go,",
            image.display()
        )));
    }
    let exit = match &*req.options {
        // What every client sends, whatever the runtime; the rest of it is CRIU's.
        options if options.type_url.ends_with("runc.v1.CheckpointOptions") => {
            let options = CheckpointOptions::parse_from_bytes(&options.value);
            options.map_err(|e| TaskError::Invalid(format!("checkpoint options: {e}")))?.exit
        }
        _ => false,
    };
    fs::create_dir_all(image).map_err(|e| TaskError::host(format!("creating {}", image.display()), e))?;
    pod.backend()?.checkpoint(&req.id, image, !exit).await?;
    if let Some(bound) = pod.bound() {
        let manifest_digest = manifest(image).await.ok().map(|digest| digest.to_string().as_str().into());
        bound.record(vec![Event::CheckpointCreated {
            checkpoint: req.path.as_str().into(),
            manifest_digest,
            exited: exit,
        }]);
    }
    let event = ev::TaskCheckpointed { container_id: req.id, checkpoint: req.path, ..Default::default() };
    pod.events.publish("/tasks/checkpointed", &event);
    Ok(())
}

/// SHA-256 of what a checkpoint is made of: a line for each file, sorted, as sha256sum(1) prints it.
pub async fn manifest(image: &Path) -> io::Result<Digest> {
    let image = image.to_owned();
    // Gigabytes, and the pod's other calls do not wait.
    tokio::task::spawn_blocking(move || digest(&image)).await?
}

fn digest(image: &Path) -> io::Result<Digest> {
    let mut lines = BTreeSet::new();
    for file in fs::read_dir(image)? {
        let file = file?;
        if file.file_type()?.is_file() {
            let name = file.file_name();
            lines.insert(format!(
                "{}  {}\n",
                Digest::of_reader(File::open(file.path())?)?.hex(),
                name.to_string_lossy()
            ));
        }
    }
    Ok(Digest::of(lines.into_iter().collect::<String>().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_with_another_byte_or_name_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        put("pages.img", "memory");
        let first = digest(dir.path()).unwrap();
        assert_eq!(digest(dir.path()).unwrap(), first);
        put("pages.img", "memorY");
        let second = digest(dir.path()).unwrap();
        put("more.img", "");
        assert_ne!(first, second);
        assert_ne!(digest(dir.path()).unwrap(), second);
    }
}
