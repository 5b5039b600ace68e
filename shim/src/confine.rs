//! What a shim gives up before it makes a sandbox: capabilities and system calls that nothing of it needs, neither the shim nor
//! what it starts, which inherits the rest. Only with gVisor: a shim of another kind starts workloads on the host's kernel or
//! a virtual machine's monitor in turn, and those get from it what their specs say. What that is worth, and what remains:
//! docs/threat-model.md.

use std::collections::BTreeMap;

use caps::{CapSet, Capability};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::harden::BackendKind;
use crate::sys;

/// To change the kernel, to end or to stop the machine, to set its clock, to read its log, to write its security rules.
const GIVEN_UP: [Capability; 11] = [
    Capability::CAP_SYS_MODULE,
    Capability::CAP_SYS_BOOT,
    Capability::CAP_SYS_TIME,
    Capability::CAP_WAKE_ALARM,
    Capability::CAP_BLOCK_SUSPEND,
    Capability::CAP_SYSLOG,
    Capability::CAP_SYS_PACCT,
    Capability::CAP_MAC_ADMIN,
    Capability::CAP_MAC_OVERRIDE,
    Capability::CAP_AUDIT_CONTROL,
    Capability::CAP_AUDIT_READ,
];

/// The same again, for a process that has got such a capability from elsewhere; and doors into the kernel that no runsc, mount,
/// hook or logger goes through. A list of what is denied: what a hook is, only the operator knows.
const DENIED: [libc::c_long; 18] = [
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_open_by_handle_at,
];
/// Of this machine alone: ports of the hardware.
#[cfg(target_arch = "x86_64")]
const DENIED_HERE: [libc::c_long; 2] = [libc::SYS_iopl, libc::SYS_ioperm];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: [libc::c_long; 0] = [];
/// The same calls by their other numbers (Linux `arch/x86/include/uapi/asm/unistd.h`).
#[cfg(target_arch = "x86_64")]
const X32: libc::c_long = 0x4000_0000;

/// Why nothing was given up. The shim goes on: it is what it was, and the log says so.
#[derive(Debug, thiserror::Error)]
enum NotConfined {
    #[error("giving up capabilities: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    #[error("making the filter of system calls: {0}")]
    Filter(#[from] seccompiler::BackendError),
    #[error("installing the filter of system calls: {0}")]
    Install(#[from] std::io::Error),
}

/// Before the first child of a pod that is made this way. For good.
pub fn confine(kind: BackendKind) {
    if kind != BackendKind::Gvisor {
        return tracing::debug!("the shim keeps what it has: its sandbox is made by another shim");
    }
    for done in [give_up(), filter().and_then(|program| Ok(sys::install_filter(&program)?))] {
        if let Err(error) = done {
            tracing::warn!(%error, "the shim is less confined than it should be");
        }
    }
}

/// From the bounding set, too: a child of root would else get them back by its exec (capabilities(7)).
fn give_up() -> Result<(), NotConfined> {
    for capability in GIVEN_UP {
        if caps::has_cap(None, CapSet::Bounding, capability)? {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
        for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
            if caps::has_cap(None, set, capability)? {
                caps::drop(None, set, capability)?;
            }
        }
    }
    Ok(())
}

fn filter() -> Result<BpfProgram, NotConfined> {
    let calls = DENIED.into_iter().chain(DENIED_HERE);
    #[cfg(target_arch = "x86_64")]
    let calls = calls.flat_map(|call| [call, call | X32]);
    let rules: BTreeMap<i64, Vec<_>> = calls.map(|call| (call, Vec::new())).collect();
    let (allow, deny) = (SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32));
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(SeccompFilter::new(rules, allow, deny, arch)?.try_into()?)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// Each thread has its own capabilities and filter: those of the test's end with it.
    fn apart<T: Send>(test: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(test).join().unwrap())
    }

    #[test]
    fn what_is_given_up_is_gone_for_the_thread_and_its_children_and_nothing_else_is() {
        apart(|| {
            if !caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).unwrap() {
                return assert!(give_up().is_err(), "who may not give up has to say so");
            }
            let before = caps::read(None, CapSet::Bounding).unwrap();
            give_up().unwrap();
            for set in [CapSet::Bounding, CapSet::Permitted, CapSet::Effective] {
                let now = caps::read(None, set).unwrap();
                assert!(GIVEN_UP.iter().all(|capability| !now.contains(capability)), "{set:?}");
            }
            let gone: Vec<_> = before.difference(&caps::read(None, CapSet::Bounding).unwrap()).copied().collect();
            assert!(gone.iter().all(|capability| GIVEN_UP.contains(capability)), "{gone:?}");
        });
    }

    #[test]
    fn a_denied_call_fails_under_either_number_and_others_do_not() {
        let program = filter().unwrap();
        let answers = apart(move || {
            sys::install_filter_here(&program).unwrap();
            let numbers = [libc::SYS_delete_module, libc::SYS_swapoff, libc::SYS_getppid];
            numbers.map(|number| (number, sys::call_for_test(number).map_err(|e: io::Error| e.raw_os_error())))
        });
        for (number, answer) in answers {
            match number == libc::SYS_getppid {
                true => assert!(answer.is_ok()),
                false => assert_eq!(answer, Err(Some(libc::EPERM)), "{number}"),
            }
        }
    }
}
