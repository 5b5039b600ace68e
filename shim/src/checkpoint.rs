//! Checkpoint: a sandbox's state into a directory. Create with a checkpoint's path restores it (`create`).

use std::path::Path;

use containerd_shim_protos::api::CheckpointTaskRequest;
use containerd_shim_protos::events::task as ev;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::oci::CheckpointOptions;

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
    if std::fs::read_dir(image).is_ok_and(|mut files| files.next().is_some()) {
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
    std::fs::create_dir_all(image).map_err(|e| TaskError::host(format!("creating {}", image.display()), e))?;
    pod.backend()?.checkpoint(&req.id, image, !exit).await?;
    let event = ev::TaskCheckpointed { container_id: req.id, checkpoint: req.path, ..Default::default() };
    pod.events.publish("/tasks/checkpointed", &event);
    Ok(())
}
