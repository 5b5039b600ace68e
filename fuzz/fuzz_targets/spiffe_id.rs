//! Names: whatever is one has exactly one text, and an agent's workload is never taken for an agent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trust::id::{AgentId, BackendName, Namespace, NodeId, PolicyName, SandboxId, TrustDomain};

macro_rules! one_text {
    ($text:expr, $($name:ty),*) => {$(
        if let Ok(name) = $text.parse::<$name>() {
            assert_eq!(name.to_string(), $text);
        }
    )*};
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    one_text!(text, AgentId, BackendName, Namespace, NodeId, PolicyName, SandboxId, TrustDomain);
    if let Ok(agent) = text.parse::<AgentId>() {
        assert!(text.len() <= 2048 && !text.contains(['%', '?', '#', '@']) && !text.ends_with('/'));
        if let Ok(workload) = agent.sandbox(&"box".parse().unwrap()) {
            assert!(workload.to_string().parse::<AgentId>().is_err(), "{workload}");
        }
    }
    if let Ok(id) = text.parse::<SandboxId>() {
        let text = id.to_string();
        assert!(!text.contains('/') && !text.starts_with('.') && text.len() <= 76);
    }
});
