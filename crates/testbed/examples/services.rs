//! Starts a private PostgreSQL and RabbitMQ, for benchmarks and for trying things out.
//!
//! `cargo run --release -p errand-testbed --example services` prints the variables that point to them, and stops them on Ctrl-C.
//! `cargo run --release -p errand-testbed --example services -- --run COMMAND...` runs a command with the variables set, stops the
//! services, and exits with the command's status. `--fsync` before it makes every commit wait for the disk, of a server whose log has
//! the files that it will need.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitCode;

use errand_testbed::services::{Place, Postgres, RabbitMq, postgres, rabbitmq};
use tokio::signal::unix::{SignalKind, signal};

/// A benchmark that nobody consumes fills the broker; below this, its memory alarm would be what is measured.
const BROKER_MEMORY: &str = "4GB";

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let mut fsync = false;
    let mut command = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--fsync" => fsync = true,
            "--run" => command = Some(args.by_ref().collect::<Vec<_>>()),
            _ => return Ok(usage()),
        }
    }
    if command.as_ref().is_some_and(Vec::is_empty) {
        return Ok(usage());
    }

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stopped = async {
        tokio::select! {
            _ = interrupt.recv() => 130,
            _ = terminate.recv() => 143,
        }
    };
    // A start is not interrupted: a signal during it takes effect as soon as the services are up.
    tokio::select! {
        code = stopped => Ok(ExitCode::from(code)),
        code = serve(fsync, command) => code,
    }
}

async fn serve(fsync: bool, command: Option<Vec<String>>) -> anyhow::Result<ExitCode> {
    let place = Place::default();
    let broker = rabbitmq::Options { memory_watermark: BROKER_MEMORY.to_owned(), ..Default::default() };
    let (postgres, rabbitmq) = tokio::try_join!(
        Postgres::start(&place, postgres::Options { fsync, ..Default::default() }),
        RabbitMq::start(&place, broker)
    )?;
    if fsync {
        postgres.recycle_log().await?;
    }
    let variables = [("DATABASE_URL", postgres.url()), ("AMQP_URL", rabbitmq.url())];
    let Some(command) = command else {
        for (name, value) in &variables {
            println!("export {name}={value}");
        }
        eprintln!("These services are private and vanish with their data; stop them with Ctrl-C.");
        return std::future::pending().await;
    };
    let status = tokio::process::Command::new(&command[0])
        .args(&command[1..])
        .envs(variables)
        .kill_on_drop(true)
        .status()
        .await?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn usage() -> ExitCode {
    eprintln!("usage: services [--fsync] [--run COMMAND...]");
    ExitCode::from(2)
}
