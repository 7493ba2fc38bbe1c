//! The `errand-lab` binary. Everything is in the library, where tests reach it.

fn main() -> std::process::ExitCode {
    errand_lab::cli::main()
}
