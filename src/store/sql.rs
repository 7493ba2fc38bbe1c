//! Statements whose parameters and columns have names. A statement is rendered once, at its first use, into text
//! with numbered parameters; what is bound, and in which order, follows from the same declaration. No text is
//! ever made of values.
//!
//! [`statements!`] makes a function of every statement, whose arguments are the parameters:
//!
//! | in the text | stands for |
//! |---|---|
//! | `{worker}` | the parameter, or a column of a parameter that is [`One`] row |
//! | `{rows}` | all parameters that are [`Rows`], as `unnest(...) as i (names)` |
//! | `{spec}` | the names of a list of columns (`columns!`) |
//! | `{i.spec}` | the same as columns of `i`, as they are inserted |
//! | `{read spec}` | the same as they are read |
//! | `{read spec but text, tags}` | likewise, with nulls for these columns, which are not read |
//! | `{values spec}` | the parameters of that list, where it is a part of [`One`] row |
//! | `{each error, log_id: @ = i.@}` | the text after the colon for each of these columns, with its name for `@` |
//! | `{to_retry}` | a fragment of the backend, whose text is rendered likewise |

use std::marker::PhantomData;

use sqlx::{
    Database, Encode, Postgres, Sqlite, Type, encode::IsNull, error::BoxDynError, sqlite::SqliteTypeInfo,
};
use uuid::Uuid;

pub(super) use super::bound::Bound;
use crate::job::Owner;

#[derive(Debug)]
pub struct Statement {
    /// The name of its function.
    pub name: &'static str,
    pub text: String,
    /// The types of the parameters, as PostgreSQL calls them.
    pub types: Vec<String>,
}

/// How a database writes what is named in a statement.
pub(super) trait Dialect: Database {
    /// What precedes the number of a parameter.
    const MARK: char;
    /// Whether JSON has types of its own, which are sent and read as text.
    const CASTS_JSON: bool;
    const FRAGMENTS: &'static [(&'static str, &'static str)];

    /// The lists of columns that every statement may name.
    fn lists() -> Declared;
}

#[derive(Debug, Clone)]
struct Column {
    name: String,
    kind: &'static str,
}

#[derive(Debug, Default)]
pub(super) struct Declared {
    /// In the order in which they are bound.
    columns: Vec<Column>,
    /// How many of them, from the first, are sent as arrays.
    arrays: usize,
    lists: Vec<(String, Vec<Column>)>,
}

impl Declared {
    pub(super) fn column(&mut self, name: impl Into<String>, kind: &'static str) {
        self.columns.push(Column { name: name.into(), kind });
    }

    /// Declares the columns of a list under a common name.
    pub(super) fn list(&mut self, name: String, declare: impl FnOnce(&mut Self)) {
        let from = self.columns.len();
        declare(self);
        self.lists.push((name, self.columns[from..].to_vec()));
    }
}

/// A list of columns, with which a value is written to a row.
pub(super) trait Columns {
    /// What the values of a row are taken from.
    type Item<'a>: Copy;
    const NAME: &'static str;

    /// Declares the columns, whose names begin with the prefix.
    fn declare(prefix: &str, declared: &mut Declared);
    fn bind_rows(items: &[Self::Item<'_>], query: Bound<Postgres>) -> Bound<Postgres>;
    fn bind_postgres(item: Self::Item<'_>, query: Bound<Postgres>) -> Bound<Postgres>;
    fn bind_sqlite(item: Self::Item<'_>, query: Bound<Sqlite>) -> Bound<Sqlite>;

    /// The owner who asks, where the item is who asks.
    fn asked_by(_: Self::Item<'_>) -> Option<&Owner> {
        None
    }
}

pub(super) trait Parameter<DB: Database> {
    fn declare(name: &str, declared: &mut Declared);
    fn bind(self, query: Bound<DB>) -> Bound<DB>;
}

/// A batch of rows, sent as an array for each column. Such parameters come first.
pub(super) struct Rows<'a, L: Columns>(pub(super) &'a [L::Item<'a>]);

/// A column of a batch of rows.
pub(super) fn column<T: Copy, C>(batch: &[T], value: impl Fn(T) -> C) -> Vec<C> {
    batch.iter().copied().map(value).collect()
}

/// A column that most batches do not use. One without any value is sent without elements: `unnest`
/// fills it up with nulls to the length of the others, and neither side pays for them.
pub(super) fn sparse_column<T: Copy, C>(batch: &[T], value: impl Fn(T) -> Option<C>) -> Vec<Option<C>> {
    let mut values = Vec::new();
    for (place, item) in batch.iter().enumerate() {
        let value = value(*item);
        if value.is_some() && values.is_empty() {
            values.reserve(batch.len());
            values.extend((0..place).map(|_| None));
        }
        if value.is_some() || !values.is_empty() {
            values.push(value);
        }
    }
    values
}

pub(super) struct One<'a, L: Columns>(pub(super) L::Item<'a>);

impl<L: Columns> Parameter<Postgres> for Rows<'_, L> {
    fn declare(_: &str, declared: &mut Declared) {
        assert_eq!(declared.arrays, declared.columns.len(), "rows come before single values");
        L::declare("", declared);
        declared.arrays = declared.columns.len();
    }

    fn bind(self, query: Bound<Postgres>) -> Bound<Postgres> {
        L::bind_rows(self.0, query)
    }
}

impl<L: Columns> Parameter<Postgres> for One<'_, L> {
    fn declare(_: &str, declared: &mut Declared) {
        L::declare("", declared);
    }

    fn bind(self, query: Bound<Postgres>) -> Bound<Postgres> {
        L::bind_postgres(self.0, query).asked_by(L::asked_by(self.0))
    }
}

impl<L: Columns> Parameter<Sqlite> for One<'_, L> {
    fn declare(_: &str, declared: &mut Declared) {
        L::declare("", declared);
    }

    fn bind(self, query: Bound<Sqlite>) -> Bound<Sqlite> {
        L::bind_sqlite(self.0, query)
    }
}

/// A text for SQLite, which keeps a NUL inside one, but whose functions stop there. PostgreSQL refuses it, so
/// it is refused here too.
pub(super) struct Text<T>(pub(super) T);

impl<T> Type<Sqlite> for Text<T> {
    fn type_info() -> SqliteTypeInfo {
        <str as Type<Sqlite>>::type_info()
    }
}

impl<T: AsRef<str>> Encode<'_, Sqlite> for Text<T> {
    fn encode_by_ref(
        &self,
        buffer: &mut <Sqlite as Database>::ArgumentBuffer,
    ) -> Result<IsNull, BoxDynError> {
        let text = self.0.as_ref();
        if text.contains('\0') {
            return Err("a text contains a NUL character".into());
        }
        Encode::<Sqlite>::encode(text, buffer)
    }
}

/// Lets single values be parameters; a text is checked for what SQLite would not refuse.
macro_rules! single_values {
    ($($type:ty = $kind:literal: $($db:ident)+, $value:ident => $sent:expr;)*) => {
        $(single_values!(@each $type, $kind, [$($db)+], $value, $sent);)*
    };
    (@each $type:ty, $kind:literal, [$($db:ident)+], $value:ident, $sent:expr) => {
        $(impl Parameter<$db> for $type {
            fn declare(name: &str, declared: &mut Declared) {
                declared.column(name, $kind);
            }

            fn bind(self, query: Bound<$db>) -> Bound<$db> {
                let $value = self;
                query.bind($sent)
            }
        })+
    };
}

single_values! {
    Uuid = "uuid": Postgres Sqlite, value => value;
    Option<Uuid> = "uuid": Postgres Sqlite, value => value;
    Vec<Uuid> = "uuid[]": Postgres, value => value;
    Vec<u8> = "bytea": Postgres Sqlite, value => value;
    Option<Vec<u8>> = "bytea": Postgres Sqlite, value => value;
    i16 = "smallint": Postgres Sqlite, value => value;
    i32 = "integer": Postgres Sqlite, value => value;
    Option<i32> = "integer": Sqlite, value => value;
    i64 = "bigint": Postgres Sqlite, value => value;
    Option<i64> = "bigint": Postgres Sqlite, value => value;
    Vec<i64> = "bigint[]": Postgres, value => value;
    bool = "boolean": Postgres Sqlite, value => value;
    &str = "text": Postgres, value => value;
    &str = "text": Sqlite, value => Text(value);
    Option<&str> = "text": Postgres, value => value;
    Option<&str> = "text": Sqlite, value => value.map(Text);
}

/// Makes a function of every statement, and a list of them.
macro_rules! statements {
    ($db:ident: $($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),* $(,)?) = $text:expr;)*) => {
        pub(in crate::store) mod sql {
            #[allow(unused_imports, reason = "not every file needs all")]
            use super::*;
            use $crate::store::sql::{Bound, Parameter};

            $($(#[$doc])*
            #[allow(clippy::too_many_arguments, reason = "they are the parameters of the statement")]
            pub(in crate::store) fn $name($($argument: $type),*) -> Bound<sqlx::$db> {
                let query = Bound::new(texts::$name.text.as_str());
                $(let query = Parameter::<sqlx::$db>::bind($argument, query);)*
                query
            })*

            pub(in crate::store) static ALL: &[&std::sync::LazyLock<$crate::store::Statement>] = &[$(&texts::$name),*];

            #[allow(non_upper_case_globals, reason = "named like the functions")]
            mod texts {
                #[allow(unused_imports, reason = "not every file needs all")]
                use super::super::*;
                #[allow(unused_imports, reason = "not every statement has parameters")]
                use $crate::store::{Statement, sql::{Declared, Parameter, render}};
                use std::sync::LazyLock;

                $(pub(super) static $name: LazyLock<Statement> = LazyLock::new(|| {
                    #[allow(unused_mut, reason = "not every statement has parameters")]
                    let mut declared = Declared::default();
                    $(<$type as Parameter<sqlx::$db>>::declare(stringify!($argument), &mut declared);)*
                    render::<sqlx::$db>(stringify!($name), &declared, $text)
                });)*
            }
        }
    };
}
pub(super) use statements;

/// The statements of all files of a backend: those that both have, and its own.
macro_rules! all_statements {
    (@of $($file:ident)*) => {
        [$($file::sql::ALL),*].into_iter().flatten().map(|statement| &***statement)
    };
    ($($own:ident)*) => {
        all_statements!(
            @of access_keys actions admin answers audit batches callbacks changes checks claims connections events finishes history job_control job_lists jobs leases pauses pins publications
            rejections
            retention $($own)*
        )
    };
}
pub(super) use all_statements;

/// Renders a statement.
///
/// # Panics
/// The text names what is not declared. A test renders every statement.
pub(super) fn render<DB: Dialect>(name: &'static str, declared: &Declared, text: &str) -> Statement {
    let template = Template { declared, lists: DB::lists().lists, dialect: PhantomData::<DB> };
    let types = declared.columns.iter().enumerate().map(|(place, column)| template.type_of(place, column));
    Statement { name, text: template.expand(text), types: types.collect() }
}

struct Template<'a, DB> {
    declared: &'a Declared,
    lists: Vec<(String, Vec<Column>)>,
    dialect: PhantomData<DB>,
}

impl<DB: Dialect> Template<'_, DB> {
    fn expand(&self, text: &str) -> String {
        let (mut done, mut rest) = (String::with_capacity(2 * text.len()), text);
        while let Some((before, after)) = rest.split_once('{') {
            let end = closing(after);
            done.push_str(before);
            done.push_str(&self.replacement(&after[..end]));
            rest = &after[end + 1..];
        }
        done.push_str(rest);
        done
    }

    fn replacement(&self, named: &str) -> String {
        if let Some((columns, text)) = named.strip_prefix("each ").and_then(|each| each.split_once(':')) {
            let columns = columns.split(',').flat_map(|name| self.names(name.trim()));
            return joined(columns.map(|name| self.expand(&text.trim().replace('@', &name))));
        }
        if let Some(list) = named.strip_prefix("read ") {
            let (list, left_out) = list.split_once(" but ").unwrap_or((list, ""));
            let left_out: Vec<&str> = left_out.split(", ").collect();
            return joined(self.list(list).iter().map(|column| match column.kind {
                _ if left_out.contains(&column.name.as_str()) => format!("null as {}", column.name),
                "json" | "jsonb" if DB::CASTS_JSON => format!("{0}::text as {0}", column.name),
                _ => column.name.clone(),
            }));
        }
        if let Some(list) = named.strip_prefix("values ") {
            return joined(self.list(list).iter().map(|column| self.placeholder(&column.name)));
        }
        if let Some((alias, list)) = named.split_once('.') {
            return joined(self.list(list).iter().map(|column| match column.kind {
                kind @ ("json" | "jsonb") if DB::CASTS_JSON => format!("{alias}.{}::{kind}", column.name),
                _ => format!("{alias}.{}", column.name),
            }));
        }
        if named == "rows" {
            return self.rows();
        }
        if let Some((_, text)) = DB::FRAGMENTS.iter().find(|(name, _)| *name == named) {
            return self.expand(text);
        }
        if self.find(named).is_some() { joined(self.names(named)) } else { self.placeholder(named) }
    }

    fn rows(&self) -> String {
        let columns = &self.declared.columns[..self.declared.arrays];
        let arrays = columns.iter().enumerate();
        let arrays =
            joined(arrays.map(|(place, column)| {
                format!("{}{}::{}", DB::MARK, place + 1, self.type_of(place, column))
            }));
        format!("unnest({arrays}) as i ({})", joined(columns.iter().map(|column| column.name.clone())))
    }

    fn placeholder(&self, name: &str) -> String {
        let values = self.declared.columns.iter().enumerate().skip(self.declared.arrays);
        match values.into_iter().find(|(_, column)| column.name == name) {
            Some((place, _)) => format!("{}{}", DB::MARK, place + 1),
            None => panic!("a statement names {name:?}, which is nothing that it takes"),
        }
    }

    fn type_of(&self, place: usize, column: &Column) -> String {
        let kind = if column.kind.starts_with("json") { "text" } else { column.kind };
        if place < self.declared.arrays { format!("{kind}[]") } else { kind.to_owned() }
    }

    /// The names of the columns of a list, or one name.
    fn names(&self, name: &str) -> Vec<String> {
        match self.find(name) {
            Some(list) => list.iter().map(|column| column.name.clone()).collect(),
            None => vec![name.to_owned()],
        }
    }

    fn list(&self, name: &str) -> &[Column] {
        self.find(name).unwrap_or_else(|| panic!("a statement names {name:?}, which is no list of columns"))
    }

    fn find(&self, name: &str) -> Option<&[Column]> {
        let mut lists = self.declared.lists.iter().chain(&self.lists);
        lists.find(|(known, _)| known == name).map(|(_, columns)| &**columns)
    }
}

/// Where the brace is closed that was opened before this text.
fn closing(text: &str) -> usize {
    let mut open = 1;
    for (place, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => open += 1,
            b'}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return place;
        }
    }
    panic!("a brace is not closed before {text:?}")
}

fn joined(parts: impl IntoIterator<Item = String>) -> String {
    parts.into_iter().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::columns::{Attempt, Decision, Start};

    fn rendered<DB: Dialect>(declare: impl FnOnce(&mut Declared), text: &str) -> String {
        let mut declared = Declared::default();
        declare(&mut declared);
        render::<DB>("test", &declared, text).text
    }

    #[test]
    fn batches_are_arrays_and_single_values_follow() {
        let declare = |declared: &mut Declared| {
            Rows::<Decision>::declare("decisions", declared);
            <i64 as Parameter<Postgres>>::declare("after", declared);
        };
        assert_eq!(
            rendered::<Postgres>(declare, "select {i.binding}, {after} from {rows}"),
            "select i.toolkit, i.toolkit_version, i.pinned_by, i.account, i.frozen_effect, $8 \
             from unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[]) \
             as i (id, fence, toolkit, toolkit_version, pinned_by, account, frozen_effect)"
        );
    }

    #[test]
    fn a_row_gives_a_parameter_to_each_of_its_columns() {
        let declare =
            |declared: &mut Declared| <One<'_, Start> as Parameter<Sqlite>>::declare("start", declared);
        assert_eq!(
            rendered::<Sqlite>(declare, "{request_id} {waits_for} {values error} {each error: @ = {@}}"),
            "?1 ?13 ?4, ?5, ?6, ?7 \
             error_kind = ?4, error_message = ?5, error_code = ?6, error_slug = ?7"
        );
        let declare =
            |declared: &mut Declared| <One<'_, Attempt> as Parameter<Sqlite>>::declare("attempt", declared);
        assert_eq!(
            rendered::<Sqlite>(declare, "{attempt_error}: {attempt_error_code}"),
            "attempt_error_kind, attempt_error_message, attempt_error_code, attempt_error_slug: ?9"
        );
    }

    #[test]
    fn json_is_cast_where_the_database_has_a_type_for_it() {
        let both = ["{read spec}", "{i.spec}"];
        let [read, inserted] = both.map(|text| rendered::<Postgres>(|_| (), text));
        assert!(
            read.contains("arguments::text as arguments") && read.contains("tags::text as tags"),
            "{read}"
        );
        assert!(inserted.contains("i.arguments::json") && inserted.contains("i.tags::jsonb"), "{inserted}");
        assert!(both.iter().all(|text| !rendered::<Sqlite>(|_| (), text).contains("::")));
    }

    #[test]
    #[should_panic(expected = "nothing that it takes")]
    fn what_is_not_declared_cannot_be_named() {
        rendered::<Postgres>(|_| (), "select {nothing}");
    }
}
