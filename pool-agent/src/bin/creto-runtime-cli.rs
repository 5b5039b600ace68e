//! creto-runtime-cli: what people ask of a node. The verbs are in `creto_runtime::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    creto_runtime::cli::main()
}
