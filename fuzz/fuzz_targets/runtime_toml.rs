//! `shim::fuzzing::runtime_toml` says what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shim::fuzzing::runtime_toml(bytes));
