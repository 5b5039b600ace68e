//! `shim::fuzzing::rebind` says what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shim::fuzzing::rebind(bytes));
