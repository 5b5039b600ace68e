//! See `egress::fuzzing::client_hello`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| egress::fuzzing::client_hello(bytes));
