//! What a sandbox can reach a network by, as the kernel lists it.

use std::fs;

/// The interfaces of the network namespace that a process is in, in the kernel's order; none where it is gone.
pub fn of(pid: i32) -> Vec<String> {
    parse(&fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default())
}

/// Whether a process uses the host's own, which are never a sandbox's to be sealed in; also where that cannot be told.
pub fn are_ours(pid: i32) -> bool {
    let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/net")).ok();
    let (ours, theirs) = (of("self"), of(&pid.to_string()));
    theirs.is_none() || ours == theirs
}

/// Whether a namespace with these interfaces reaches nothing but itself.
pub fn is_sealed(interfaces: &[String]) -> bool {
    interfaces.iter().all(|name| name == "lo")
}

/// Two lines of headings, then `name: counters`.
fn parse(table: &str) -> Vec<String> {
    let names = table.lines().skip(2).filter_map(|line| line.split(':').next());
    names.map(|name| name.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_shares_our_network_or_is_gone_is_in_no_other() {
        assert!(are_ours(std::process::id() as i32) && are_ours(i32::MAX));
    }

    #[test]
    fn a_table_of_the_kernels_is_read() {
        let table = "Inter-|   Receive\n face |bytes\n    lo: 0 0\n  eth0: 1 2\n";
        assert_eq!(parse(table), ["lo", "eth0"]);
        assert!(!is_sealed(&parse(table)));
        assert!(is_sealed(&parse("a\nb\n lo: 0\n")) && is_sealed(&parse("")));
    }
}
