//! A file of agents.d: an agent whose keys have names of their own, or an error.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use trust::id::AgentId;
use trust::identity::registry::parse;

fuzz_target!(|bytes: &[u8]| {
    let Ok(entry) = std::str::from_utf8(bytes).map_err(drop).and_then(|text| parse(text).map_err(drop)) else { return };
    let agent = entry.agent;
    assert_eq!(agent.id.to_string().parse::<AgentId>().unwrap(), agent.id);
    let kids: HashSet<_> = agent.keys.iter().map(|key| &key.kid).collect();
    assert_eq!(kids.len(), agent.keys.len());
});
