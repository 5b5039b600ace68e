//! See `egress::fuzzing::dns_message`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| egress::fuzzing::dns_message(bytes));
