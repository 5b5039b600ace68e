//! gVisor: `runsc` and its control socket.

pub mod urpc;
