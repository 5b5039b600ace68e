//! containerd-shim-creto-v2: the program.

fn main() -> std::process::ExitCode {
    shim::main()
}
