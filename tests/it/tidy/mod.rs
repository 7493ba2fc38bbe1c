//! Rules about the structure of the code, as data.

mod migrations;
mod principals;
mod source;

use std::collections::{BTreeMap, BTreeSet};

use source::{Crate, Source, files, read};

/// The modules of `src` by floor: a module imports only from lower floors, and not from its own.
const FLOORS: &[&[&str]] = &[
    &[
        "backoff",
        "bounds",
        "clock",
        "failure",
        "http_client",
        "seal",
        "secret_file",
        "shutdown",
        "string_enum",
        "sync",
    ],
    &["job"],
    &["access", "callback", "telemetry"],
    &["queue", "store", "tool"],
    &[
        "actions",
        "admission",
        "cursor",
        "desk_json",
        "health",
        "in_flight",
        "job_json",
        "lane_head",
        "lane_view",
        "rejected",
        "services",
        "supervisor",
        "task_lease",
    ],
    &["resolver"],
    &["api", "maintenance", "relay", "worker"],
    &["config"],
    &["app"],
    &["cli"],
];

/// Imports that no floor explains away.
const NEVER: &[(&str, &str)] = &[
    ("tool", "store"),
    ("store", "queue"),
    ("queue", "store"),
    ("store", "config"),
    ("queue", "config"),
    ("tool", "config"),
    ("worker", "config"),
    ("maintenance", "worker"),
    ("api", "worker"),
];

/// Crates that only some places may name.
const OWNERS: &[(&str, &[&str])] = &[
    ("sqlx", &["src/store/"]),
    ("jiff_sqlx", &["src/store/"]),
    ("lapin", &["src/queue/rabbitmq/"]),
    ("async_rs", &["src/queue/rabbitmq/"]),
    ("backoff", &["src/backoff.rs"]),
    ("metrics", &["src/telemetry/"]),
    ("metrics_exporter_prometheus", &["src/telemetry/", "src/api/", "src/app/"]),
    (
        "reqwest",
        &[
            "src/http_client.rs",
            "src/callback/",
            "src/tool/composio/",
            "src/cli/",
            "src/maintenance/ledger.rs",
            "src/queue/rabbitmq/management.rs",
        ],
    ),
    ("axum", &["src/api/", "src/cli/listen.rs"]),
    ("hyper", &["src/api/"]),
    ("hyper_util", &["src/api/"]),
    // Descriptions stand where the types are that are described.
    (
        "utoipa",
        &[
            "src/api/",
            "src/actions/json.rs",
            "src/job_json/",
            "src/desk_json.rs",
            "src/rejected.rs",
            "src/lane_view.rs",
            "src/string_enum.rs",
            "src/access.rs",
            "src/job/id.rs",
            "src/job/owner.rs",
            "src/job/outcome.rs",
            "src/store/actions.rs",
            "src/store/batches.rs",
            "src/store/filter_json.rs",
            "src/store/changes.rs",
            "src/store/events.rs",
            "src/store/history.rs",
            "src/store/job_control.rs",
            "src/store/pauses.rs",
        ],
    ),
    ("clap", &["src/cli/"]),
    ("errand_sandbox", &["src/cli/", "src/app"]),
];

/// The most lines of a file, tests included.
const MAX_LINES: usize = 500;

/// Files that are longer, with the reason.
const LONG_FILES: &[(&str, &str)] = &[
    ("tests/it/simulation/api.rs", "a simulated tool API, whose faults depend on each other"),
    ("tests/it/simulation/store.rs", "every method of the store's traits passes through it"),
    ("tests/it/simulation/world.rs", "one simulated world from its seed to its end"),
];

/// The most lines of a function outside tests.
const MAX_FUNCTION_LINES: usize = 70;

/// Functions that are longer, with the reason.
const LONG_FUNCTIONS: &[(&str, &str)] = &[];

fn errand() -> Crate {
    Crate::read("src")
}

/// The top-level module of a file of `src`.
fn module(path: &str) -> &str {
    let inner = path.strip_prefix("src/").unwrap();
    inner.split('/').next().unwrap().trim_end_matches(".rs")
}

fn assert_none(broken: &[String], rule: &str) {
    assert!(broken.is_empty(), "{rule}\n{}", broken.join("\n"));
}

#[test]
fn a_module_imports_only_from_those_below_it() {
    let floor = |name: &str| FLOORS.iter().position(|floor| floor.contains(&name));
    let house = errand();
    let mut broken = Vec::new();
    for (file, imports) in house.imports() {
        let from = module(file);
        if from == "lib" {
            continue;
        }
        let Some(at) = floor(from) else {
            broken.push(format!("{file}: the module `{from}` has no floor; give it one"));
            continue;
        };
        for import in imports.iter().filter(|import| module(import) != from) {
            let to = module(import);
            let is_lower = floor(to).is_some_and(|lower| lower < at)
                // The floor of the seams is one for sight; which of them may know which is said below.
                || floor(to) == Some(at) && !NEVER.contains(&(from, to)) && at == 2;
            if !is_lower || NEVER.contains(&(from, to)) {
                broken.push(format!("{file} imports {import}"));
            }
        }
    }
    assert_none(&broken, "imports that go up, sideways or where they never may:");
}

#[test]
fn no_file_imports_itself_by_way_of_others() {
    for folder in crates() {
        let house = Crate::read(&folder);
        let mut imports = house.imports();
        // A folder's mod.rs puts its files together, and they share what it declares; that is one module.
        for (file, targets) in &mut imports {
            targets.retain(|target| !is_parent(file, target) && !is_parent(target, file));
        }
        let circles = circles(&imports);
        assert!(circles.is_empty(), "circles of imports in {folder}: {circles:#?}");
    }
}

#[test]
fn each_crate_is_named_only_where_it_belongs() {
    let mut broken = Vec::new();
    for source in &errand().sources {
        for (name, places) in OWNERS {
            if source.names_crate(name) && !places.iter().any(|place| source.path.starts_with(place)) {
                broken.push(format!("{} uses {name}, which belongs to {places:?}", source.path));
            }
        }
    }
    assert_none(&broken, "crates out of place:");
}

/// Where the sources of a folder contain one of these words outside comments.
fn words_in(folder: &str, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for path in files(folder, ".rs") {
        let source = Source::read(folder, &path);
        let words = words.iter().filter(|word| source.code.contains(**word));
        found.extend(words.map(|word| format!("{path}: {word}")));
    }
    found
}

#[test]
fn production_knows_nothing_of_its_tests_and_the_sandbox_nothing_of_errand() {
    let of_tests = words_in("src", &["errand_testbed", "errand_lab"]);
    assert_none(&of_tests, "production names what only tests use:");
    let of_errand = words_in("crates/sandbox/src", &["errand::", "errand_testbed", "errand_lab"]);
    assert_none(&of_errand, "the sandbox names what it stands in for:");
}

#[test]
fn nothing_is_printed_that_panics_when_its_reader_goes_away() {
    assert_none(&words_in("src", &["println!", "print!("]), "print by cli::output instead:");
}

#[test]
fn what_prints_itself_holds_no_secret_as_a_plain_text() {
    let is_plain =
        |kind: &str| ["String", "str", "u8"].iter().any(|plain| words(kind).any(|word| word == *plain));
    let mut broken = Vec::new();
    for source in &errand().sources {
        let (mut derives, mut prints) = (false, false);
        for line in source.code.lines().map(str::trim) {
            if line.starts_with("#[derive(") {
                derives = words(line).any(|word| word == "Debug");
            } else if words(line).any(|word| ["struct", "enum"].contains(&word)) {
                (derives, prints) = (false, derives && line.ends_with('{'));
            } else if let Some((field, kind)) = line.split_once(": ").filter(|_| prints) {
                let name = words(field).last().unwrap_or_default();
                if ["secret", "secrets", "password", "api_key"].contains(&name) && is_plain(kind) {
                    broken.push(format!("{}: {line}", source.path));
                }
            } else if line == "}" {
                prints = false;
            }
        }
    }
    assert_none(&broken, "what is secret is a SecretString, which does not print itself");
}

/// The words of a line of code.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

#[test]
fn files_and_functions_have_a_ceiling() {
    let mut broken = Vec::new();
    for folder in crates() {
        for source in &Crate::read(&folder).sources {
            let allowed = LONG_FILES.iter().any(|(path, _)| *path == source.path);
            if (source.lines() > MAX_LINES) != allowed {
                broken.push(format!("{}: {} lines, exception: {allowed}", source.path, source.lines()));
            }
            for (name, lines) in source.functions() {
                let whole = format!("{}::{name}", source.path);
                let allowed = LONG_FUNCTIONS.iter().any(|(path, _)| *path == whole);
                if lines > MAX_FUNCTION_LINES && !allowed {
                    broken.push(format!("{whole}: {lines} lines"));
                }
            }
        }
    }
    let tests = files("tests/it", ".rs").into_iter().map(|path| (read(&path).lines().count(), path));
    broken.extend(
        tests
            .filter(|(lines, path)| *lines > MAX_LINES && !LONG_FILES.iter().any(|(long, _)| long == path))
            .map(|(lines, path)| format!("{path}: {lines} lines")),
    );
    assert_none(&broken, "longer than the ceiling, or an exception that is none any more:");
}

#[test]
fn a_module_with_a_folder_is_the_mod_rs_in_it() {
    let all: BTreeSet<String> = crates().iter().flat_map(|folder| files(folder, ".rs")).collect();
    let beside = all.iter().filter(|path| {
        let folder = format!("{}/", path.trim_end_matches(".rs"));
        all.iter().any(|other| other.starts_with(&folder))
    });
    assert_none(&beside.cloned().collect::<Vec<_>>(), "files beside a folder of their name:");
}

#[test]
fn each_guarantee_names_a_test_that_exists_or_says_that_there_is_none() {
    let tests: BTreeSet<String> = ["src", "tests/it", "crates"]
        .iter()
        .flat_map(|folder| files(folder, ".rs"))
        .flat_map(|path| {
            let text = read(&path);
            let named = ["fn ", "on_every_backend!("].iter().flat_map(|before| {
                text.match_indices(before).map(|(at, _)| {
                    let name = text[at + before.len()..].chars();
                    name.take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
                })
            });
            named.collect::<Vec<_>>()
        })
        .collect();
    let mut broken = Vec::new();
    for bullet in bullets(&read("docs/guarantees.md")) {
        let start = bullet.chars().take(60).collect::<String>();
        let Some((_, named)) = bullet.split_once("Test: ").or_else(|| bullet.split_once("Tests: ")) else {
            if !bullet.contains("No test") {
                broken.push(format!("{start}...: names no test, and does not say \"No test\""));
            }
            continue;
        };
        let names: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            broken.push(format!("{start}...: \"Test:\" without a name"));
        }
        let unknown = names.iter().filter(|name| !tests.contains(name.rsplit("::").next().unwrap_or(name)));
        broken.extend(unknown.map(|name| format!("{start}...: there is no test `{name}`")));
    }
    assert_none(&broken, "guarantees without a test:");
}

/// The bullets of a page, each on one line.
fn bullets(page: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut open = false;
    for line in page.lines() {
        if let Some(text) = line.strip_prefix("* ") {
            all.push(text.to_owned());
            open = true;
        } else if open && line.starts_with("  ") {
            let last = all.last_mut().unwrap();
            last.push(' ');
            last.push_str(line.trim());
        } else {
            open = false;
        }
    }
    all
}

/// The folders with the sources of the workspace.
fn crates() -> Vec<String> {
    let mut folders = vec!["src".to_owned(), "examples/rust/src".to_owned()];
    for name in ["lab", "sandbox", "testbed"] {
        folders.push(format!("crates/{name}/src"));
    }
    folders.retain(|folder| source::root().join(folder).exists());
    folders
}

/// Whether a file is the `mod.rs` of a folder around another.
fn is_parent(file: &str, inner: &str) -> bool {
    ["mod.rs", "lib.rs"]
        .iter()
        .any(|name| file.strip_suffix(name).is_some_and(|folder| inner.starts_with(folder)))
}

/// Groups of files that reach each other.
fn circles<'a>(imports: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Vec<Vec<&'a str>> {
    let reach = |from: &'a str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(file) = next.pop() {
            for target in imports.get(file).into_iter().flatten() {
                if seen.insert(*target) {
                    next.push(target);
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&str, BTreeSet<&str>> = imports.keys().map(|file| (*file, reach(file))).collect();
    let mut found: BTreeSet<Vec<&str>> = BTreeSet::new();
    for (file, targets) in &reached {
        if targets.contains(file) {
            found.insert(targets.iter().copied().filter(|other| reached[other].contains(file)).collect());
        }
    }
    found.into_iter().collect()
}
