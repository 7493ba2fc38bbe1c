//! What was measured of the API, for people and for programs.

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Serialize;

use super::{
    batches::Batches,
    by_sql::BySql,
    callbacks::Callbacks,
    enqueue::{Enqueue, Latency},
    held::Held,
    lists::Lists,
};

/// Everything that one run measured.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(super) enqueue: Option<Enqueue>,
    pub(super) batches: Option<Batches>,
    pub(super) waiters: Option<Held>,
    pub(super) streams: Option<Held>,
    pub(super) lists: Option<Lists>,
    pub(super) by_sql: Option<BySql>,
    pub(super) callbacks: Option<Callbacks>,
}

impl Report {
    /// The report as text.
    pub(crate) fn text(&self) -> String {
        let Self { enqueue, batches, waiters, streams, lists, by_sql, callbacks } = self;
        let parts = [
            enqueue.as_ref().map(Enqueue::text),
            batches.as_ref().map(Batches::text),
            waiters.as_ref().map(|held| held.text("requests that wait")),
            streams.as_ref().map(|held| held.text("streams of events")),
            lists.as_ref().map(Lists::text),
            by_sql.as_ref().map(BySql::text),
            callbacks.as_ref().map(Callbacks::text),
        ];
        parts.into_iter().flatten().collect()
    }
}

impl Enqueue {
    fn text(&self) -> String {
        let Self {
            connections, stored, unstored, ratio, refused, ratio_to_refused, bare, ratio_to_bare, ..
        } = self;
        format!(
            "jobs one by one from {connections} connections: {:.0}/s, all but the store {:.0}/s; ratio {ratio}\n\
             refused before the store {:.0}/s; ratio {ratio_to_refused}\n\
             database and broker alone {:.0}/s; ratio {ratio_to_bare}\n\
             at an even {:.0}/s {}; database and broker alone {}\n",
            stored.median,
            unstored.median,
            refused.median,
            bare.median,
            self.pace,
            self.latency.text(),
            self.latency_bare.text()
        )
    }
}

impl Latency {
    fn text(&self) -> String {
        let Self { p50, p99, highest } = self;
        format!(
            "p50 {:.1} ms, p99 {:.1} ms (from {:.1} to {:.1}), highest {:.1} ms",
            p50.median, p99.median, p99.lowest, p99.highest, highest.highest
        )
    }
}

impl Batches {
    fn text(&self) -> String {
        let Self { items, batches, api, insert, ratio } = self;
        format!(
            "{batches} batches of {items} jobs: {:.0} jobs/s, a bare insert {:.0} rows/s; ratio {ratio}\n",
            api.median, insert.median
        )
    }
}

impl BySql {
    fn text(&self) -> String {
        let Self { connections, per_transaction, rate, pace, p50, p99 } = self;
        format!(
            "jobs by SQL from {connections} connections, {per_transaction} in a transaction: {:.0}/s (from {:.0} to {:.0})\n\
             one by one at an even {pace:.0}/s, they start after their commit: p50 {:.1} ms, p99 {:.1} ms (from {:.1} to {:.1})\n",
            rate.median, rate.lowest, rate.highest, p50.median, p99.median, p99.lowest, p99.highest
        )
    }
}

impl Callbacks {
    fn text(&self) -> String {
        let Self { events, owners, alone, waiting, beside_the_dead, ratio } = self;
        format!(
            "{events} callbacks of {owners} owners to receivers that take 50 ms: {:.0}/s (from {:.0} to {:.0})\n\
             beside {waiting} for a receiver that never answers: {:.0}/s (from {:.0} to {:.0}); ratio {ratio}\n",
            alone.median,
            alone.lowest,
            alone.highest,
            beside_the_dead.median,
            beside_the_dead.lowest,
            beside_the_dead.highest
        )
    }
}

impl Held {
    fn text(&self, what: &str) -> String {
        let percent = |share: f64| format!("{:.2} %", share * 100.0);
        format!(
            "{} {what}: the database is busy for {} of the time ({} with the asking and the answers), the API uses \
             {} of a processor and {:.1} KB of memory for each\n",
            self.requests,
            percent(self.database_share),
            percent(self.database_share_in_all),
            percent(self.processor_share),
            self.bytes_each / 1024.0
        )
    }
}

impl Lists {
    fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header(["LIST", "ITEMS", "NEXT", "MEDIAN MS", "WORST MS", "RATIO"]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for list in &self.lists {
            table.add_row([
                list.path.clone(),
                list.items.to_string(),
                if list.has_next { "yes" } else { "no" }.to_owned(),
                format!("{:.1}", list.time.median),
                format!("{:.1}", list.time.highest),
                format!("{:.1}", list.ratio),
            ]);
        }
        format!(
            "lists among {} finished jobs; the newest by a bare statement: {:.2} ms\n\n{table}\n",
            self.finished, self.statement.median
        )
    }
}
