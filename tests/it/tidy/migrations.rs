//! Migrations of PostgreSQL run beside the traffic of others, so they must be brief or wait for nobody.

use super::{
    assert_none,
    source::{files, read},
};

/// Those up to this one were made before the rules, and are never edited.
const LANDED: u32 = 5;

const NO_TRANSACTION: &str = "-- no-transaction";

/// What looks at every row, or writes every row, while nobody else may use the table.
const SLOW: &[(&str, &[&str])] = &[
    ("set not null", &[]),
    ("alter column", &["set default", "drop default", "drop not null", "set statistics", "set storage"]),
    ("add check", &["not valid"]),
    ("add constraint", &["not valid", "using index"]),
    ("add primary key", &["using index"]),
    ("add unique", &["using index"]),
    ("add foreign key", &["not valid"]),
    ("references", &["not valid"]),
    ("add column", &[]),
    ("cluster", &[]),
    ("set tablespace", &[]),
];

/// What takes away what a worker of the build before still names.
const BREAKING: &[&str] = &["rename column", "rename to", "drop column"];

/// What is wrong with a migration, one sentence each.
fn faults(number: u32, text: &str) -> Vec<String> {
    if number <= LANDED {
        return Vec::new();
    }
    let outside = text.starts_with(NO_TRANSACTION);
    let plain: Vec<&str> = text.lines().map(|line| line.split("--").next().unwrap_or_default()).collect();
    let plain = plain.join(" ").to_lowercase();
    let statements: Vec<String> =
        plain.split(';').map(|s| s.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let made: Vec<&str> = statements
        .iter()
        .filter_map(|s| s.strip_prefix("create table ").map(|s| s.trim_start_matches("if not exists ")))
        .filter_map(|s| s.split([' ', '(']).next())
        .collect();
    let is_new = |table: Option<&str>| table.is_some_and(|table| made.contains(&table));
    let mut faults = Vec::new();
    for statement in &statements {
        let mut fault = |why: &str| faults.push(format!("migration {number}: {why}: {statement}"));
        let words: Vec<&str> = statement.split([' ', '(']).filter(|word| !word.is_empty()).collect();
        let after =
            |word: &str| words.iter().position(|w| *w == word).and_then(|at| words.get(at + 1)).copied();
        match words.as_slice() {
            ["create", "index", ..] | ["create", "unique", "index", ..] if !is_new(after("on")) => {
                if !statement.contains(" concurrently ") {
                    fault("an index of a table that is there is built with `concurrently`");
                } else if !outside {
                    fault("what is `concurrently` needs a first line `-- no-transaction`");
                } else if !statements.iter().any(|s| s.starts_with("drop index concurrently if exists ")) {
                    fault("what a crash left half built has to be dropped first");
                }
            }
            ["drop", "index", ..] if !statement.contains(" concurrently ") => {
                fault("an index is dropped with `concurrently`")
            }
            ["alter", "table", rest @ ..] => {
                let table = rest.iter().find(|word| !["only", "if", "exists"].contains(word)).copied();
                // A default is brief where it is a constant.
                let is_slow = |(slow, but): &(&str, &[&str])| match *slow {
                    "add column" => {
                        statement.contains("add column")
                            && statement.contains("default")
                            && statement.contains('(')
                    }
                    slow => statement.contains(slow) && !but.iter().any(|but| statement.contains(but)),
                };
                if !is_new(table) && BREAKING.iter().any(|breaking| statement.contains(breaking)) {
                    fault(
                        "a worker of the build before goes on without it: expand first, contract in a later release",
                    );
                }
                if !is_new(table) && SLOW.iter().any(is_slow) {
                    fault("it looks at every row while nobody can use the table");
                }
            }
            ["alter", "domain", ..] if statement.contains(" add ") && !statement.contains("not valid") => {
                fault("it looks at every row of every table with the domain; add it `not valid`");
            }
            ["update", table, ..] | ["delete", "from", table, ..] if !is_new(Some(table)) => {
                fault("rows are changed by errand in batches, not by a migration at once");
            }
            ["drop", "view", ..] => fault("its readers' grants go with it: `create or replace view`"),
            ["vacuum" | "reindex" | "cluster", ..] => fault("it is no matter of a migration"),
            _ => {}
        }
    }
    faults
}

#[test]
fn a_migration_is_brief_or_keeps_nobody_waiting() {
    let mut broken = Vec::new();
    for file in files("migrations/postgres", "sql") {
        let name = file.rsplit('/').next().unwrap();
        let number = name.split('_').next().unwrap().parse().unwrap();
        broken.extend(faults(number, &read(&file)));
    }
    assert_none(&broken, "a migration is brief, or waits without keeping others waiting");
}

#[test]
fn slow_migrations_are_told_from_brief_ones() {
    for slow in [
        "create index i on jobs (a);",
        "create unique index i on jobs (a);",
        "create index concurrently i on jobs (a);",
        "-- no-transaction\ncreate index concurrently i on jobs (a);",
        "drop index i;",
        "alter table jobs rename column a to b;",
        "alter table jobs drop column a;",
        "alter table jobs alter column a type bigint;",
        "alter table jobs alter column a set not null;",
        "alter table jobs add constraint c check (a > 0);",
        "alter table jobs add column a timestamptz not null default clock_timestamp();",
        "alter domain word add constraint w check (value in ('a'));",
        "update jobs set a = 1;",
        "drop view job_list;",
        "create table t (a int); delete from jobs where a = 1;",
    ] {
        assert_eq!(faults(6, slow).len(), 1, "{slow}: {:?}", faults(6, slow));
    }
    for brief in [
        "create table t (a int);\ncreate index i on t (a);\nupdate t set a = 1;",
        "-- no-transaction\ndrop index concurrently if exists i;\ncreate index concurrently i on jobs (a);",
        "alter table jobs add column a integer not null default 0;",
        "alter table jobs add column a text;",
        "alter table jobs add constraint c check (a > 0) not valid;",
        "alter table jobs alter column a set default 1;",
        "alter domain word add constraint w check (value in ('a')) not valid;",
        "-- create index i on jobs (a);",
    ] {
        assert_eq!(faults(6, brief), Vec::<String>::new(), "{brief}");
    }
    assert!(faults(LANDED, "create index i on jobs (a);").is_empty());
}
