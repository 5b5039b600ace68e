//! creto-egress.
fn main() {}
