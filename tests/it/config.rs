//! Settings: layers, mistakes, and what is shown of them.

use std::collections::BTreeMap;

use errand::{
    app,
    config::{Config, ConfigErrors, DEFAULTS, Loaded, Origin, Sources, load, mask_url},
    failure::chain,
    job::QueueType,
};
use proptest::prelude::*;
use secrecy::ExposeSecret as _;

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

pub(crate) fn with_env(pairs: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
    load(&Sources { file: None, env: env(pairs) })
}

pub(crate) fn with_file(text: &str, pairs: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    std::fs::write(file.path(), text).unwrap();
    load(&Sources { file: Some(file.path().to_owned()), env: env(pairs) })
}

fn mistakes(result: Result<Loaded, ConfigErrors>) -> Vec<String> {
    result.map(drop).unwrap_err().0.iter().map(|mistake| mistake.message.clone()).collect()
}

fn only_mistake(result: Result<Loaded, ConfigErrors>) -> String {
    let all = mistakes(result);
    assert_eq!(all.len(), 1, "{all:?}");
    all.into_iter().next().unwrap()
}

#[test]
fn the_defaults_are_valid_and_every_one_of_them_has_a_rule() {
    let loaded = with_env(&[]).unwrap();
    let shown = loaded.to_json(false);
    let manual: toml::Table = DEFAULTS.parse().unwrap();
    let mut count = 0;
    for (section, table) in &manual {
        for (key, value) in table.as_table().unwrap() {
            match value {
                toml::Value::Table(lane) => {
                    for key_of_lane in lane.keys() {
                        assert!(shown.get(format!("{section}.{key}.{key_of_lane}")).is_some());
                        count += 1;
                    }
                }
                _ => {
                    assert!(shown.get(format!("{section}.{key}")).is_some(), "{section}.{key}");
                    count += 1;
                }
            }
        }
    }
    assert_eq!(shown.as_object().unwrap().len(), count);
}

#[test]
fn a_file_overrides_defaults_and_the_environment_overrides_the_file() {
    let text = "[retry]\nmax_attempts = 7\ninitial_ms = 10\n[log]\nlevel = \"warn\"\n";
    let loaded = with_file(text, &[("ERRAND__RETRY__MAX_ATTEMPTS", "9")]).unwrap();
    assert_eq!(loaded.config.retry.max_attempts, 9);
    assert_eq!(loaded.config.retry.initial_ms, 10);
    assert!(matches!(loaded.origin("retry.max_attempts"), Some(Origin::Env { .. })));
    assert!(matches!(loaded.origin("retry.initial_ms"), Some(Origin::File { line: 3, .. })));
    assert_eq!(loaded.origin("retry.jitter"), Some(&Origin::Default));
}

#[test]
fn the_long_name_of_the_environment_is_stronger_than_the_short_one() {
    let loaded = with_env(&[("AMQP_URL", "amqp://short"), ("ERRAND__AMQP__URL", "amqp://long")]).unwrap();
    assert_eq!(loaded.config.amqp.url.expose_secret(), "amqp://long");
}

#[test]
fn blank_short_names_count_as_unset() {
    let loaded =
        with_env(&[("DATABASE_URL", "  "), ("COMPOSIO_BASE_URL", ""), ("COMPOSIO_TOOLKIT_VERSION_X", " ")]);
    let config = loaded.unwrap().config;
    assert!(config.require_store().is_err());
    assert_eq!(config.composio.base_url, "https://backend.composio.dev");
    assert!(config.env_pins.is_empty());
}

#[test]
fn values_of_the_environment_are_read_by_the_type_of_the_setting() {
    let config = with_env(&[
        ("ERRAND__QUEUES__BULK__CONCURRENCY", "1_000"),
        ("ERRAND__QUEUES__MAIL__CONCURRENCY", "5"),
        ("ERRAND__WORKER__QUEUES", "bulk, mail"),
        ("ERRAND__RETRY__MULTIPLIER", "3"),
        ("ERRAND__AMQP__DECLARE", "false"),
        ("ERRAND__AMQP__QUEUE_TYPE", "classic"),
        ("ERRAND__TOOLKIT_VERSIONS__GITHUB", "20251027_00"),
        ("ERRAND__TOOLKITS__SLACK__OWNED_BY", "org"),
        ("ERRAND__HTTP__LISTEN", ""),
        ("COMPOSIO_TOOLKIT_VERSION_GMAIL", "20250101_03"),
    ])
    .unwrap()
    .config;
    let lane = |config: &Config, name: &str| config.queues[&name.parse().unwrap()].concurrency;
    assert_eq!((lane(&config, "bulk"), lane(&config, "mail"), lane(&config, "default")), (1_000, 5, 256));
    assert_eq!(config.worker.queues.len(), 2);
    assert!((config.retry.multiplier - 3.0).abs() < f64::EPSILON);
    assert!(!config.amqp.declare);
    assert_eq!(config.amqp.queue_type, QueueType::Classic);
    assert_eq!(config.toolkit_versions["github"], "20251027_00");
    assert_eq!(config.env_pins["gmail"], "20250101_03");
    assert!(config.toolkits["slack"].owned_by.is_some());
    assert!(config.http.listen.is_none());
}

#[test]
fn whole_numbers_may_stand_for_fractions_in_a_file() {
    assert!(
        (with_file("[retry]\nmultiplier = 2\n", &[]).unwrap().config.retry.multiplier - 2.0).abs() < 0.001
    );
}

#[test]
fn lanes_of_a_file_are_added_to_the_default_ones() {
    let config = with_file("[queues.mail]\nconcurrency = 3\n", &[]).unwrap().config;
    let names: Vec<_> = config.queues.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["bulk", "default", "mail"]);
}

#[test]
fn all_mistakes_are_reported_at_once_with_their_places() {
    let text = "[stor]\nurl = 1\n[retry]\njitter = 1.5\nmax_atempts = 3\n[queues.mail]\n[worker]\nlease_secs = \"long\"\n";
    let errors = with_file(text, &[("ERRAND__RELAY__BATCH", "none"), ("ERRAND__RELAY__BACH", "1")])
        .map(drop)
        .unwrap_err()
        .to_string();
    let errors = errors.replace(|c: char| c.is_ascii_digit(), "9");
    for expected in [
        "has 7 mistakes",
        "`stor` is not a setting; did you mean `store`?",
        "`retry.jitter` must be a number from 0 to 1, but is 1.5",
        "`retry.max_atempts` is not a setting; did you mean `retry.max_attempts`?",
        "`queues.mail.concurrency` is missing",
        "`worker.lease_secs` must be a whole number from 2 to 3600, but is text",
        "`relay.batch` must be a whole number from 1 to 10000 (environment variable ERRAND__RELAY__BATCH)",
        "`ERRAND__RELAY__BACH` is not a setting; did you mean `ERRAND__RELAY__BATCH`?",
    ] {
        let expected = expected.replace(|c: char| c.is_ascii_digit(), "9");
        assert!(errors.contains(&expected), "{expected}\n{errors}");
    }
    assert!(errors.contains(".toml, line 9)"), "{errors}");
}

#[test]
fn relations_are_checked_with_their_reason() {
    for (pairs, expected) in [
        (&[("ERRAND__WORKER__LEASE_SECS", "16")][..], "at least 17"),
        (&[("ERRAND__RETRY__INITIAL_MS", "700000")], "the longest wait"),
        (&[("ERRAND__COMPOSIO__TIMEOUT_MS", "1000")], "which includes connecting"),
        (&[("ERRAND__WORKER__MAX_BUFFERED_BYTES", "65536")], "one answer of the largest size"),
        (
            &[("ERRAND__WORKER__QUEUES", "default,mail")],
            "names `mail`, which is not in [queues] (bulk, default)",
        ),
        (&[("ERRAND__QUEUES__DEAD__CONCURRENCY", "5")], "what the broker dead-letters"),
    ] {
        let mistake = only_mistake(with_env(pairs));
        assert!(mistake.contains(expected), "{mistake}");
    }
    assert!(with_env(&[("ERRAND__WORKER__LEASE_SECS", "17")]).is_ok());
}

#[test]
fn events_are_recorded_where_they_are_sent_or_all_are_asked_for_and_never_sent_where_they_are_not() {
    let record = |what| ("ERRAND__EVENTS__RECORD", what);
    let listeners = [("ERRAND__EVENTS__EXCHANGE", "true"), ("ERRAND__CALLBACKS__ENABLED", "true")];
    let records = |env: &[(&str, &str)]| with_env(env).unwrap().config.records_events();
    assert!(!records(&[]) && records(&[record("all")]) && !records(&[record("off")]));
    for (listener, key) in listeners.into_iter().zip(["events.exchange", "callbacks.enabled"]) {
        assert!(records(&[listener]) && records(&[listener, record("all")]), "{key}");
        let mistake = only_mistake(with_env(&[listener, record("off")]));
        assert!(mistake.contains(&format!("`{key}`")) && mistake.contains("`events.record`"), "{mistake}");
        // What is wrong by itself is told once.
        only_mistake(with_env(&[listener, record("some")]));
    }
    only_mistake(with_env(&[("ERRAND__EVENTS__EXCHANGE", "errand.events")]));
}

#[test]
fn no_lane_has_the_name_of_the_exchange_for_events() {
    let [exchange, lane] =
        [("ERRAND__EVENTS__EXCHANGE", "true"), ("ERRAND__QUEUES__EVENTS__CONCURRENCY", "5")];
    let mistake = only_mistake(with_env(&[exchange, lane]));
    assert!(mistake.contains("`queues.events`") && mistake.contains("`events.exchange`"), "{mistake}");
    assert!(with_env(&[lane]).is_ok());
}

#[test]
fn an_owners_jobs_are_kept_for_a_shorter_time_than_those_of_others_and_never_for_longer() {
    let days = |days: u32| Some(std::time::Duration::from_secs(u64::from(days) * 24 * 3600));
    let file = "[owner_retention.\"user:a.b\"]\nsucceeded_days = 1\n";
    let loaded = with_file(file, &[]).unwrap();
    let options = app::prune(&loaded.config);
    let own = options.owners[&"user:a.b".parse().unwrap()];
    assert_eq!((own.succeeded, own.failed), (days(1), days(30)), "what is not said is that of all");
    assert_eq!(options.jobs.succeeded, days(7));
    assert_eq!(with_file(&loaded.to_toml(false), &[]).unwrap().to_json(false), loaded.to_json(false));

    for wrong in ["8", "0"] {
        let mistake = only_mistake(with_file(&file.replace("= 1", &format!("= {wrong}")), &[]));
        assert!(mistake.contains("not for longer") && mistake.contains("from 1 to 7"), "{mistake}");
    }
    // Beside what is kept for ever, everything is shorter.
    let for_ever = [("ERRAND__RETENTION__SUCCEEDED_DAYS", "0")];
    assert!(with_file(&file.replace("= 1", "= 9000"), &for_ever).is_ok());
    assert!(with_file(&file.replace("= 1", "= 0"), &for_ever).is_ok());
    assert_eq!(app::prune(&with_env(&for_ever).unwrap().config).jobs.succeeded, None);

    let mistake = only_mistake(with_file("[owner_retention.alice]\nsucceeded_days = 1\n", &[]));
    assert!(mistake.contains("user:ID"), "{mistake}");
    let mistake = only_mistake(with_env(&[("ERRAND__OWNER_RETENTION__USER:A__SUCCEEDED_DAYS", "1")]));
    assert!(mistake.contains("of a file"), "{mistake}");
}

#[test]
fn values_that_make_no_sense_are_refused() {
    for (name, value) in [
        ("ERRAND__QUEUES__DEFAULT__CONCURRENCY", "0"),
        ("ERRAND__QUEUES__DEFAULT__CONCURRENCY", "20001"),
        ("ERRAND__QUEUES__Überlauf__CONCURRENCY", "1"),
        ("ERRAND__RELAY__BATCH", "0"),
        ("ERRAND__RELAY__BATCH", "10001"),
        ("ERRAND__RETRY__MULTIPLIER", "0.5"),
        ("ERRAND__RETRY__MULTIPLIER", "NaN"),
        ("ERRAND__RETRY__JITTER", "-0.1"),
        ("ERRAND__STORE__HOT_CONNECTIONS", "-1"),
        ("ERRAND__STORE__URL", "mysql://h/d"),
        ("ERRAND__AMQP__URL", "http://h"),
        ("ERRAND__AMQP__QUEUE_TYPE", "Quorum"),
        ("ERRAND__AMQP__MANAGEMENT_URL", "amqp://h"),
        ("ERRAND__REPLIES__ALLOWED", "app.,errand.default"),
        ("ERRAND__COMPOSIO__BASE_URL", "backend.composio.dev"),
        ("ERRAND__COMPOSIO__BASE_URL", "ftp://h"),
        ("ERRAND__COMPOSIO__BASE_URL", "https://u:p@h"),
        ("ERRAND__COMPOSIO__API_PATH", "api/v3"),
        ("ERRAND__COMPOSIO__API_KEY", "two words"),
        ("ERRAND__LOG__LEVEL", "inof"),
        ("ERRAND__HTTP__LISTEN", "localhost"),
        ("ERRAND__TOOLKIT_VERSIONS__GITHUB", "latest"),
        ("COMPOSIO_TOOLKIT_VERSION_GITHUB", "1.2.3"),
        ("ERRAND__TOOLKITS__SLACK__OWNED_BY", "team"),
    ] {
        only_mistake(with_env(&[(name, value)]));
    }
    assert!(
        only_mistake(with_file("[toolkit_versions]\nGitHub = \"20251027_00\"\n", &[])).contains("lower case")
    );
    assert!(only_mistake(with_file("[replies]\nallowed = [\"\"]\n", &[])).contains("none of them empty"));
    assert!(only_mistake(with_file("store = 5\n", &[])).contains("must be a section"));
    assert!(only_mistake(with_file("[store]\nurl = { a = 1 }\n", &[])).contains("but is a table"));
    assert!(only_mistake(with_file("[relay]\nbatch = 99999999999999999999\n", &[])).contains("whole number"));
}

#[test]
fn single_underscores_are_not_ours() {
    assert!(with_env(&[("ERRAND_PORT", "tcp://10.0.0.1:80"), ("ERRAND_SERVICE_HOST", "x")]).is_ok());
}

#[test]
fn a_named_file_must_exist_and_be_toml() {
    let missing = Sources { file: Some("/nonexistent/errand.toml".into()), env: BTreeMap::new() };
    assert!(only_mistake(load(&missing)).contains("named by --config cannot be read"));
    let missing = Sources { file: None, env: env(&[("ERRAND_CONFIG", "/nonexistent/errand.toml")]) };
    assert!(only_mistake(load(&missing)).contains("named by ERRAND_CONFIG cannot be read"));
    assert!(mistakes(with_file("[store]\nurl = \"x\nbatch\n", &[]))[0].contains("not valid TOML"));
}

#[test]
fn no_message_and_no_view_contains_a_secret() {
    const SECRET: &str = "hunter2";
    let wrong_places = [
        "ERRAND__STORE__URL",
        "ERRAND__AMQP__URL",
        "ERRAND__AMQP__MANAGEMENT_URL",
        "DATABASE_URL",
        "AMQP_URL",
        "COMPOSIO_BASE_URL",
        "ERRAND__COMPOSIO__API_PATH",
        "ERRAND__LOG__LEVEL",
        "ERRAND__HTTP__LISTEN",
        "ERRAND__RELAY__BATCH",
        "ERRAND__PINS__UNPINNED",
        "COMPOSIO_TOOLKIT_VERSION_GITHUB",
        "ERRAND__TOOLKIT_VERSIONS__GITHUB",
    ];
    for name in wrong_places {
        for value in ["x y://u:hunter2@h:port/", "hunter2 hunter2", "ftp://u:hunter2@h/"] {
            let error = with_env(&[(name, value)]).map(drop).unwrap_err();
            assert!(!format!("{error} {error:?}").contains(SECRET), "{name}: {error}");
        }
    }
    for text in [
        "[store]\nurl = \"postgres://a:hunter2@h",
        "[store]\nurl = postgres://a:hunter2@h",
        "[amqp]\nurl = [\"hunter2\"]",
    ] {
        let error = with_file(text, &[]).map(drop).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(SECRET), "{error}");
    }
    let loaded = with_env(&[
        ("DATABASE_URL", "postgres://a:hunter2@h/d?password=hunter2"),
        ("AMQP_URL", "amqp://a:hunter2@h/"),
        ("ERRAND__AMQP__MANAGEMENT_URL", "http://a:hunter2@h:15672"),
        ("COMPOSIO_API_KEY", "hunter2"),
    ])
    .unwrap();
    for shown in [loaded.to_toml(true), loaded.to_json(true).to_string(), format!("{loaded:?}")] {
        assert!(!shown.contains(SECRET), "{shown}");
    }
}

/// A password in pieces that are recognized wherever a parser puts them, with what parsers stumble over in between.
fn password() -> impl Strategy<Value = (Vec<String>, String)> {
    let piece = "zq[a-z0-9]{5}";
    let between = prop_oneof!["[@/#?:%&=+;\\\\]{1,3}", "[ -/:-@\\[-`{-~\\t\u{e9}\u{200b}]{1,3}"];
    let first = prop_oneof![Just(String::new()), "[0-9]{1,3}"];
    let rest = prop::collection::vec((between, piece), 1..4);
    (first, rest).prop_map(|(first, rest)| {
        let all = rest.iter().flat_map(|(between, piece)| [&**between, &**piece]);
        let password = all.fold(first, |password, part| password + part);
        (rest.into_iter().map(|(_, piece)| piece).collect(), password)
    })
}

/// Everything that is said about an address before anybody connects.
fn said_about(pairs: &[(&str, &str)]) -> String {
    let loaded = match with_env(pairs) {
        Ok(loaded) => loaded,
        Err(errors) => return format!("{errors}{errors:?}"),
    };
    let mut said = format!("{loaded:?}{}{}", loaded.to_toml(true), loaded.to_json(true));
    let config = &loaded.config;
    for error in [app::open_store(config).err(), app::open_queue(config).err()].into_iter().flatten() {
        said += &chain(&*error);
    }
    for url in [&config.store.url, &config.amqp.url] {
        said += &mask_url(url.expose_secret());
    }
    said
}

proptest! {
    #[test]
    fn no_part_of_any_password_is_said_however_it_misleads_a_parser((pieces, password) in password()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _pools_want_one = runtime.enter();
        let urls = [
            ("DATABASE_URL", format!("postgres://app:{password}@127.0.0.1:1/errand")),
            ("DATABASE_URL", format!("postgres://127.0.0.1:1/errand?user=app&password={password}")),
            ("AMQP_URL", format!("amqp://app:{password}@127.0.0.1:1/%2f")),
            ("AMQP_URL", format!("amqp://127.0.0.1:1/?auth_token={password}")),
            ("COMPOSIO_BASE_URL", format!("http://app:{password}@127.0.0.1:1/")),
        ];
        for (name, url) in urls {
            // Hosts are shown in lower case.
            let said = said_about(&[(name, &url)]).to_lowercase();
            for piece in &pieces {
                prop_assert!(!said.contains(piece.as_str()), "{piece} of {url} in {said}");
            }
        }
    }
}

#[test]
fn a_password_that_misleads_the_parser_is_refused_with_what_to_do() {
    for url in
        ["postgres://app:a@b/c@127.0.0.1/errand", "postgres://app:1#c@127.0.0.1/d", "postgres://app@h/d#x"]
    {
        let mistake = only_mistake(with_env(&[("DATABASE_URL", url)]));
        assert!(mistake.contains("percent-encode special characters in the password"), "{mistake}");
    }
    for fine in
        ["postgres://app:a@b@127.0.0.1/errand", "postgres://app:a%2Fb@127.0.0.1/d", "sqlite:///a@b/c#d"]
    {
        assert!(with_env(&[("DATABASE_URL", fine)]).is_ok(), "{fine}");
    }
}

#[test]
fn a_schema_has_a_plain_name() {
    assert_eq!(with_env(&[]).unwrap().config.store.schema.as_str(), "errand");
    assert_eq!(
        with_env(&[("ERRAND__STORE__SCHEMA", "tools")]).unwrap().config.store.schema.as_str(),
        "tools"
    );
    for bad in ["", "Tools", "a b", "a\"; drop", "pg_catalog", "information_schema", &"a".repeat(64)] {
        let mistake = only_mistake(with_env(&[("ERRAND__STORE__SCHEMA", bad)]));
        assert!(mistake.contains("`store.schema` must be the name of a schema"), "{mistake}");
    }
}

#[test]
fn what_is_shown_can_be_loaded_again() {
    let first = with_env(&[
        ("ERRAND__QUEUES__MAIL__CONCURRENCY", "3"),
        ("ERRAND__TOOLKIT_VERSIONS__X", "20250101_00"),
    ]);
    let shown = first.unwrap().to_toml(false);
    let second = with_file(&shown, &[]).unwrap();
    assert_eq!(second.to_toml(false), shown);
}

#[test]
fn what_a_command_needs_is_named_with_its_variable() {
    let config = with_env(&[]).unwrap().config;
    assert!(config.require_store().unwrap_err().to_string().contains("set DATABASE_URL"));
    assert!(config.require_amqp().unwrap_err().to_string().contains("set AMQP_URL"));
    assert!(config.require_api_key().unwrap_err().to_string().contains("set COMPOSIO_API_KEY"));
    let sqlite = with_env(&[("DATABASE_URL", "sqlite:///tmp/x.db")]).unwrap().config;
    assert!(sqlite.require_store().is_ok() && sqlite.store_is_sqlite());
}
