//! The shim's `delete` action: a clean slate from disk alone, after the shim has died. Idempotent; prints the
//! DeleteResponse that containerd turns into the lost task's exit.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::{Message, MessageField};

use crate::args::Call;
use crate::backend::gvisor::cli::Runsc;
use crate::task::KILLED;
use crate::{events, mounts, paths};

/// Runs the action.
pub fn run(call: &Call) -> Result<(), Box<dyn std::error::Error>> {
    let bundle = call.bundle.clone().unwrap_or_else(|| PathBuf::from("."));
    let group = crate::start::group(&bundle.join("config.json"), &call.id).unwrap_or_else(|_| call.id.clone());
    let dir = paths::sandbox(&paths::state_root(), &call.address, &call.namespace, &group);
    let runsc = Runsc::new(&dir);
    if group == call.id {
        // The sandbox takes the pod's other containers with it, and runsc knows of them only as long as it is there.
        for other in others(&dir, &call.id) {
            runsc.delete_blocking(&paths::runsc_id(&other))?;
        }
    }
    if dir.exists() {
        runsc.delete_blocking(&paths::runsc_id(&call.id))?;
    }
    mounts::unmount_all(&bundle.join("rootfs"));
    let _ = fs::remove_dir_all(paths::bundle(&dir, &call.id));
    if group == call.id {
        runsc.forget();
        let _ = fs::remove_file(paths::socket(&call.address, &call.namespace, &group, None));
    }
    let exited_at = MessageField::some(events::timestamp(SystemTime::now()));
    let answer = DeleteResponse { exit_status: KILLED, exited_at, ..Default::default() };
    std::io::stdout().write_all(&answer.write_to_bytes()?)?;
    Ok(())
}

/// The pod's containers but this one.
fn others(sandbox: &Path, id: &str) -> Vec<String> {
    let bundles = fs::read_dir(paths::bundle(sandbox, "")).into_iter().flatten().flatten();
    bundles.filter_map(|bundle| bundle.file_name().into_string().ok()).filter(|other| other != id).collect()
}
