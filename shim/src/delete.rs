//! The shim's `delete` action: a clean slate from disk alone, after the shim has died. Idempotent; prints the
//! DeleteResponse that containerd turns into the lost task's exit.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::SystemTime;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::{Message, MessageField};

use crate::args::Call;
use crate::backend::{self, Place};
use crate::task::KILLED;
use crate::{events, fence, mounts, paths};

/// Runs the action.
pub fn run(call: &Call) -> Result<(), Box<dyn std::error::Error>> {
    let bundle = call.bundle.clone().unwrap_or_else(|| PathBuf::from("."));
    let group = crate::start::group(&bundle.join("config.json"), &call.id).unwrap_or_else(|_| call.id.clone());
    let dir = paths::sandbox(&paths::state_root(), &call.address, &call.namespace, &group);
    let (address, namespace) = (call.address.clone(), call.namespace.clone());
    let place = Place { dir, address, namespace, group: group.clone() };
    backend::sweep(&place, &call.id, &bundle)?;
    mounts::unmount_all(&bundle.join("rootfs"));
    if group == call.id {
        fence::detach(&place);
        let _ = fs::remove_file(paths::socket(&call.address, &call.namespace, &group, None));
    }
    let exited_at = MessageField::some(events::timestamp(SystemTime::now()));
    let answer = DeleteResponse { exit_status: KILLED, exited_at, ..Default::default() };
    std::io::stdout().write_all(&answer.write_to_bytes()?)?;
    Ok(())
}
