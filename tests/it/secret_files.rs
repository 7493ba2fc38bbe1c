//! Secrets in files, which the environment or `errand.toml` names.

use std::path::Path;

use secrecy::ExposeSecret as _;

use crate::config::{with_env, with_file};

#[test]
fn secrets_can_be_in_files_that_the_environment_names() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (store, amqp, key) = (
        file("store", b"\xef\xbb\xbfpostgres://a:hunter2@h/d\n"),
        file("amqp", b"amqp://a:hunter2@h/\r\n"),
        file("key", b"ak_hunter2"),
    );
    let files = [("DATABASE_URL_FILE", &*store), ("AMQP_URL_FILE", &*amqp), ("COMPOSIO_API_KEY_FILE", &*key)];
    let loaded = with_env(&files).unwrap();
    assert_eq!(loaded.config.store.url.expose_secret(), "postgres://a:hunter2@h/d");
    assert_eq!(loaded.config.amqp.url.expose_secret(), "amqp://a:hunter2@h/");
    assert_eq!(loaded.config.composio.api_key.expose_secret(), "ak_hunter2");
    assert_eq!(loaded.config.api_key_file.as_deref(), Some(Path::new(&key)));
    let told = loaded.origin("amqp.url").unwrap().to_string();
    assert_eq!(told, format!("the file {amqp}, by environment variable AMQP_URL_FILE"));
    let shown = loaded.to_toml(true);
    assert!(!shown.contains("hunter2") && shown.contains("DATABASE_URL_FILE"), "{shown}");

    let long = with_env(&[("AMQP_URL_FILE", &amqp), ("ERRAND__AMQP__URL", "amqp://long")]).unwrap();
    assert_eq!(long.config.amqp.url.expose_secret(), "amqp://long");
    assert_eq!(with_env(&[("COMPOSIO_API_KEY", "ak_1")]).unwrap().config.api_key_file, None);
    assert!(with_env(&[("AMQP_URL_FILE", " "), ("AMQP_URL", "amqp://h")]).is_ok(), "blank counts as unset");
    for (name, setting) in [("ERRAND__STORE__URL", "store.url"), ("DATABASE_URL", "store.url")] {
        let loaded = with_env(&[(&format!("{name}_FILE"), &*store), (name, "")]).unwrap();
        assert!(
            loaded
                .origin(setting)
                .unwrap()
                .to_string()
                .contains(&format!("by environment variable {name}_FILE"))
        );
    }

    let (empty, no_url) = (file("empty", b"\n"), file("no-url", b"hunter2 hunter2"));
    let (no_text, large) = (file("no-text", b"hunter2\xff"), file("large", &[b'x'; 70_000]));
    for (pairs, said) in [
        (
            &[("AMQP_URL_FILE", &*amqp), ("AMQP_URL", "amqp://h")][..],
            "is given twice, by AMQP_URL and by AMQP_URL_FILE",
        ),
        (
            &[("ERRAND__AMQP__URL_FILE", &*amqp), ("ERRAND__AMQP__URL", "amqp://h")],
            "`amqp.url` is given twice, by ERRAND__AMQP__URL and by ERRAND__AMQP__URL_FILE",
        ),
        (&[("AMQP_MANAGEMENT_URL_FILE", &*empty)], &*format!("the file {empty}, which is empty")),
        (&[("ERRAND__STORE__SCHEMA_FILE", &*empty)], "`ERRAND__STORE__SCHEMA_FILE` is not a setting"),
        (&[("DATABASE_URL_FILE", "/nonexistent/hunter2")], "which cannot be read: No such file"),
        (&[("DATABASE_URL_FILE", &*empty)], "which is empty"),
        (&[("DATABASE_URL_FILE", &*no_url)], "`store.url` must be a URL"),
        (&[("COMPOSIO_API_KEY_FILE", &*no_url)], "`composio.api_key` must be text of visible"),
        (&[("COMPOSIO_API_KEY_FILE", &*no_text)], "which cannot be read"),
        (&[("COMPOSIO_API_KEY_FILE", &*large)], "which has more than 65536 bytes"),
        (&[("COMPOSIO_API_KEY_FILE", "ak_hunter2")], "which cannot be read"),
    ] {
        let error = with_env(pairs).map(drop).unwrap_err();
        assert_eq!(error.0.len(), 1, "{error}");
        assert!(error.to_string().contains(said), "{said}: {error}");
        assert!(!format!("{error}{error:?}").contains("hunter2"), "{error}");
    }
}

#[test]
fn secrets_can_be_in_files_that_the_file_names() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "http://a:hunter2@h:15672\n").unwrap();
    let path = secret.display().to_string();
    // A file that began as the manual has blank values.
    let text = format!(
        "[amqp]\nmanagement_url = \"\"\nmanagement_url_file = '{path}'\nurl_file = ''\nurl = 'amqp://h'"
    );
    let loaded = with_file(&text, &[]).unwrap();
    assert_eq!(loaded.config.amqp.management_url.expose_secret(), "http://a:hunter2@h:15672");
    assert_eq!(loaded.config.amqp.url.expose_secret(), "amqp://h");
    let told = loaded.origin("amqp.management_url").unwrap().to_string();
    assert!(told.starts_with(&format!("the file {path}, by ")) && told.ends_with("line 3"), "{told}");
    // The environment is stronger, whichever of the two it has.
    let other = with_file(&text, &[("AMQP_MANAGEMENT_URL", "http://other")]).unwrap();
    assert_eq!(other.config.amqp.management_url.expose_secret(), "http://other");
    for (text, said) in [
        (
            format!("[store]\nurl = 'postgres://h'\nurl_file = '{path}'"),
            "given twice, by url and by url_file",
        ),
        (
            format!("[store]\nurl_file = '{path}'\nurl = 'postgres://h'"),
            "given twice, by url and by url_file",
        ),
        (format!("[store]\nurl_file = '{path}2'"), "which cannot be read: No such file"),
        ("[composio]\napi_key_file = 7".to_owned(), "named by text"),
        (format!("[store]\nschema_file = '{path}'"), "`store.schema_file` is not a setting"),
        (format!("[log]\nlevel_file = '{path}'"), "`log.level_file` is not a setting"),
    ] {
        let error = with_file(&text, &[]).map(drop).unwrap_err();
        assert_eq!(error.0.len(), 1, "{error}");
        assert!(error.to_string().contains(said), "{said}: {error}");
        assert!(!format!("{error}{error:?}").contains("hunter2"), "{error}");
    }
}
