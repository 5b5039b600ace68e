//! A producer's file in the spool: each line is the record of its place, written the one way, or is rejected.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use trust::audit::record::Producer;
use trust::audit::{AuditRecord, inbox, ocsf};

static PRODUCER: LazyLock<Producer> = LazyLock::new(|| Producer::parse("shim-1-00000000000000ff").unwrap());

fuzz_target!(|bytes: &[u8]| {
    for (n, line) in inbox::parse(&PRODUCER, 7, bytes).into_iter().enumerate() {
        assert_eq!((&line.id.producer, line.id.sequence), (&*PRODUCER, 7 + n as u64));
        let Ok((record, text)) = line.content else { continue };
        assert_eq!(record.id, line.id);
        assert_eq!(record.to_bytes().unwrap(), text);
        assert_eq!(AuditRecord::parse(&text).unwrap(), record);
        assert_eq!(ocsf::event(&record, 0)["metadata"]["event_code"], record.event.name());
    }
});
