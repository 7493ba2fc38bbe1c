//! The files of a deployment that can be checked without a container engine.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

const COMPOSE: &str = include_str!("../../docker-compose.yml");
const DOCKERFILE: &str = include_str!("../../deploy/Dockerfile");
const DEFAULTS: &str = include_str!("../../src/config/default.toml");

#[test]
fn promtool_accepts_the_configuration_and_the_alerts() {
    promtool(&["check", "config", "prometheus.yml"]);
    promtool(&["check", "rules", "alerts.yml"]);
}

#[test]
fn each_alert_fires_when_it_should_and_is_silent_when_it_should_be() {
    promtool(&["test", "rules", "alerts_test.yml"]);
}

#[test]
fn every_file_that_a_container_mounts_exists() {
    let mounts: Vec<&str> = COMPOSE
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- ./"))
        .filter_map(|mount| Some(mount.split_once(':')?.0))
        .collect();
    assert!(!mounts.is_empty());
    for mount in mounts {
        assert!(root().join(mount).exists(), "{mount} does not exist");
    }
}

#[test]
fn every_setting_that_the_containers_are_given_exists() {
    let defaults: toml::Table = toml::from_str(DEFAULTS).unwrap();
    let mut found = 0;
    for name in [COMPOSE, DOCKERFILE].iter().flat_map(|text| text.split([' ', ':', '=', '\n'])) {
        let Some(setting) = name.strip_prefix("ERRAND__") else { continue };
        let mut value = Some(&toml::Value::Table(defaults.clone())).cloned();
        for key in setting.split("__") {
            value = value.and_then(|value| value.get(key.to_ascii_lowercase()).cloned());
        }
        assert!(value.is_some(), "{name} is not in default.toml");
        found += 1;
    }
    assert!(found > 0);
}

#[test]
fn containers_publish_their_ports_on_loopback_only() {
    let ports: Vec<&str> = COMPOSE.lines().map(str::trim).filter(|line| is_port(line)).collect();
    assert!(!ports.is_empty());
    for port in ports {
        assert!(port.starts_with("- \"127.0.0.1:"), "{port} is open to others");
    }
}

/// Whether a line of a list ends with a port of a container, as in `- "3000:3000"`.
fn is_port(line: &str) -> bool {
    let entry = line.strip_prefix("- ").map(|entry| entry.trim_matches('"'));
    entry.and_then(|entry| entry.rsplit_once(':')).is_some_and(|(_, port)| port.parse::<u16>().is_ok())
}

fn promtool(args: &[&str]) {
    let output =
        match Command::new("promtool").args(args).current_dir(root().join("deploy/prometheus")).output() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                eprintln!("Skipped, because there is no promtool: install the Debian package `prometheus`.");
                return;
            }
            output => output.unwrap(),
        };
    assert!(
        output.status.success(),
        "promtool {args:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}
