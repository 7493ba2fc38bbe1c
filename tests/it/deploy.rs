//! The files of a deployment that can be checked without a container engine.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use errand::config::{Sources, load};

use crate::dashboards::{Alert, alerts};

const COMPOSE: &str = include_str!("../../docker-compose.yml");
const DOCKERFILE: &str = include_str!("../../deploy/Dockerfile");
const RUNBOOK: &str = include_str!("../../docs/runbook.md");
const UNIT: &str = include_str!("../../deploy/systemd/errand.service");
const KUBERNETES: &str = include_str!("../../deploy/kubernetes/errand.yaml");
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
fn each_alert_has_its_section_in_the_runbook() {
    let mut sections: BTreeMap<&str, &str> =
        RUNBOOK.split("\n## ").skip(1).filter_map(|section| section.split_once('\n')).collect();
    for Alert { name, text, .. } in alerts() {
        let url = format!("runbook_url: docs/runbook.md#{}\n", name.to_lowercase());
        assert!(text.contains(&url), "{name} does not name its section");
        let section = sections.remove(name.as_str()).unwrap_or_else(|| panic!("{name} has no section"));
        for part in ["* **Means**: ", "* **Confirm**: ", "* **Do**: ", "* **Do not** "] {
            assert_eq!(section.matches(part).count(), 1, "{name}: {part}");
        }
    }
    assert!(sections.is_empty(), "no alert: {sections:?}");
}

#[test]
fn systemd_accepts_the_unit_and_finds_it_hardened() {
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("errand.service");
    // The program is not installed where the unit has it.
    let ours = UNIT.replace("/usr/local/bin/errand", env!("CARGO_BIN_EXE_errand"));
    assert_ne!(ours, UNIT);
    std::fs::write(&unit, ours).unwrap();
    let unit = unit.to_str().unwrap();
    let analyzed = |args: &[&str]| {
        let output = Command::new("systemd-analyze").args(args).output().unwrap();
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap()).concat();
        assert!(output.status.success(), "systemd-analyze {args:?}\n{said}");
        said
    };
    assert_eq!(analyzed(&["verify", unit]), "");
    // Of 100, where 20 is what systemd calls OK.
    analyzed(&["security", "--offline=true", "--threshold=15", unit]);
}

#[test]
fn whatever_stops_a_worker_waits_for_its_drain() {
    let drain = load(&Sources::default()).unwrap().config.worker.drain_secs;
    for (file, key) in [
        (UNIT, "TimeoutStopSec="),
        (COMPOSE, "stop_grace_period: "),
        (KUBERNETES, "terminationGracePeriodSeconds: "),
    ] {
        let waits = file.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap();
        assert!(waits.trim_end_matches('s').parse::<u64>().unwrap() > drain, "{key} cuts running calls off");
    }
}

#[test]
fn pods_get_their_secrets_in_files_and_have_no_rights() {
    let pods: Vec<&str> = KUBERNETES.split("\n---\n").filter(|part| part.contains("containers:")).collect();
    assert_eq!(pods.len(), 2, "the migration and the workers");
    for pod in pods {
        for part in [
            "runAsNonRoot: true",
            "runAsUser: 10001",
            "automountServiceAccountToken: false",
            "allowPrivilegeEscalation: false",
            "readOnlyRootFilesystem: true",
            "capabilities: {drop: [\"ALL\"]}",
            "limits: {memory: ",
            "secret: {secretName: errand, defaultMode: 0440}",
        ] {
            assert_eq!(pod.matches(part).count(), 1, "{part} in\n{pod}");
        }
        for secret in ["DATABASE_URL", "AMQP_URL", "COMPOSIO_API_KEY"] {
            let file = secret.to_lowercase();
            let line = format!("- {{name: {secret}_FILE, value: /run/secrets/errand/{file}}}\n");
            assert!(pod.contains(&line), "{line}");
        }
    }
    assert!(DOCKERFILE.contains("--uid 10001"), "the pods run as another user than the image has");
    // The folder that the image writes to has to outlive the pod.
    assert!(
        DOCKERFILE.contains("VOLUME /var/lib/errand/journal")
            && KUBERNETES.contains("mountPath: /var/lib/errand/journal")
    );
    assert!(KUBERNETES.contains("path: /health/live") && KUBERNETES.contains("path: /health/ready"));
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

#[test]
fn every_container_is_hardened_and_bounded() {
    let hardened = block("x-hardened");
    for right in ["read_only: true", "cap_drop:\n    - ALL", "no-new-privileges:true"] {
        assert!(hardened.contains(right), "{right} is not in {hardened}");
    }
    assert!(block("x-errand").contains("<<: *hardened"));
    let services = services();
    assert!(services.len() > 5, "{services:?}");
    for (name, service) in services {
        let is_hardened = service.contains("<<: *hardened") || service.contains("<<: *errand");
        assert!(is_hardened, "{name} is not hardened");
        assert!(service.contains("mem_limit: "), "{name} may take all memory");
        for given_up in ["privileged", "cap_add", "read_only: false"] {
            assert!(!service.contains(given_up), "{name}: {given_up}");
        }
    }
}

#[test]
fn our_containers_get_their_secrets_in_files_that_are_valid() {
    let env: BTreeMap<String, String> = block("x-environment")
        .lines()
        .filter_map(|line| line.trim().split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
        .map(|(name, value)| {
            (name, value.replace("/run/secrets", &root().join("deploy/secrets").display().to_string()))
        })
        .collect();
    for setting in ["DATABASE_URL", "AMQP_URL", "AMQP_MANAGEMENT_URL", "COMPOSIO_API_KEY"] {
        assert!(!env.contains_key(setting), "{setting} is in the environment");
        assert!(env.contains_key(&format!("{setting}_FILE")), "{setting}");
    }
    let config = load(&Sources { file: None, env }).unwrap().config;
    assert!(
        config.require_store().is_ok() && config.require_amqp().is_ok() && config.require_api_key().is_ok()
    );
    // What a service names has to be declared, from a file that is there.
    let declared = block("secrets");
    for (name, service) in services() {
        for secret in service.split("/run/secrets/").skip(1) {
            let secret = secret.lines().next().unwrap();
            let line = format!("  {secret}:\n    file: ./deploy/secrets/{secret}");
            assert!(declared.contains(&line), "{name}: {secret} is not declared");
            assert!(root().join("deploy/secrets").join(secret).exists(), "{name}: {secret} has no file");
        }
    }
}

#[test]
fn nobody_can_log_in_with_a_password_that_everybody_knows() {
    let grafana = services().into_iter().find(|(name, _)| name == "grafana").unwrap().1;
    assert!(
        grafana.contains(r#"GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION: "true""#),
        "admin/admin can log in"
    );
}

/// The lines of a section of the compose file that are indented below its name.
fn block(name: &str) -> String {
    let lines = COMPOSE.lines().skip_while(|line| !line.starts_with(&format!("{name}:"))).skip(1);
    let lines: Vec<&str> = lines.take_while(|line| line.is_empty() || line.starts_with(' ')).collect();
    assert!(!lines.is_empty(), "there is no {name}");
    lines.join("\n")
}

/// The services of the compose file by name.
fn services() -> Vec<(String, String)> {
    let mut services: Vec<(String, String)> = Vec::new();
    for line in block("services").lines() {
        let is_name = line.starts_with("  ") && !line.starts_with("   ") && line.ends_with(':');
        if is_name {
            services.push((line.trim().trim_end_matches(':').to_owned(), String::new()));
        } else if let Some((_, service)) = services.last_mut() {
            service.push_str(line);
            service.push('\n');
        }
    }
    services
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
