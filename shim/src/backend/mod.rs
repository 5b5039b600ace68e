//! What isolates a sandbox. So far gVisor's control channel; the lifecycle is issue 3's next step.

pub mod gvisor;
