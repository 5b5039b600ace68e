//! `creto.dev/*` on a pod: containerd passes them on (`pod_annotations`), and they are honoured or refused in our words.

use crate::harness::cri::{Cri, Pod, annotations, of_all};
use crate::harness::{Containerd, Setup};
use crate::leak_table::POLICY;

/// Whether a container of the pod gets an answer from a server that `web` allows by address.
fn gets_out(cri: &Cri, pod: &Pod) -> bool {
    let id = cri.run_script(pod, "c", "sleep 1000");
    let said = cri.exec(&id, &["sh", "-c", "echo hello | nc -w 5 93.184.215.18 9000"], 20).unwrap();
    said.stdout.contains("hello")
}

#[test]
fn a_pod_s_network_policy_holds_and_without_one_nothing_is_reached() {
    for containerd in [Containerd::V2_4, Containerd::V1_7] {
        let cri = Cri::with(Setup { containerd, ..Setup::default() }, &[("web", POLICY)]);
        for (handler, policy, out) in [("runc", None, true), ("creto", None, false), ("creto", Some("web"), true)] {
            let mut config = cri.pod("p");
            let policy: Vec<_> = policy.map(|name| ("creto.dev/network-policy", name)).into_iter().collect();
            config.annotations = annotations(&policy);
            let pod = cri.try_run_pod(handler, config).unwrap();
            assert_eq!(gets_out(&cri, &pod), out, "{handler} {policy:?}");
            cri.remove_pod(&pod);
        }
    }
}

#[test]
fn a_pod_with_a_bad_annotation_fails_in_our_words_and_leaves_nothing() {
    of_all(|cri, handler| {
        for (key, value, words) in [
            ("creto.dev/profil", "strict", "creto.dev/profil"),
            ("creto.dev/agent", "spiffe://", "creto.dev/agent"),
            ("creto.dev/network-policy", "no-such-policy", "no-such-policy"),
        ] {
            let mut config = cri.pod("p");
            config.annotations = annotations(&[(key, value)]);
            match (handler, cri.try_run_pod(handler, config)) {
                ("runc", Ok(pod)) => cri.remove_pod(&pod),
                ("creto", Err(failed)) => assert!(failed.message().contains(words), "{key}: {failed}"),
                (_, other) => panic!("{handler} {key}: {other:?}"),
            }
        }
        cri.network.node.assert_nothing_left();
    });
}
