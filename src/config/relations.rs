//! What must hold between settings. A setting that is mistaken by itself is left out, so that nothing is reported
//! twice.

use std::collections::{BTreeMap, BTreeSet};

use toml::Value;

use crate::job::QueueName;

use super::{
    error::{Mistake, Origin},
    names::Key,
    values::Settings,
};

/// A lease must outlast three heartbeats by this, so that one slow write does not lose a worker.
const LEASE_MARGIN_SECS: i64 = 2;

/// Checks all relations. `lanes` are those that a file declares, which must have a concurrency in the end.
pub(super) fn check(
    settings: &Settings,
    mistaken: &BTreeSet<Key>,
    lanes: &BTreeMap<Key, Origin>,
) -> Vec<Mistake> {
    let mut relations = Relations { settings, mistaken, mistakes: Vec::new() };
    relations.lease_outlasts_heartbeats();
    relations.at_most("retry.initial_ms", "retry.max_ms", ", the longest wait");
    relations.at_most("composio.connect_timeout_ms", "composio.timeout_ms", ", which includes connecting");
    let one_fits = "so that one answer of the largest size fits";
    relations.at_least("worker.max_buffered_bytes", "composio.max_response_bytes", one_fits);
    let never_arrived = "or no call could be found to have never arrived";
    relations.at_least("verify.give_up_secs", "verify.log_delay_secs", never_arrived);
    relations.owners_keep_no_longer();
    relations.a_certificate_has_its_key();
    relations.roles_are_of_postgresql();
    relations.events_that_are_sent_are_recorded();
    relations.no_lane_is_named_like_the_exchange();
    relations.lanes_have_a_concurrency(lanes);
    relations.consumed_lanes_exist();
    relations.no_lane_is_dead();
    relations.mistakes
}

struct Relations<'a> {
    settings: &'a Settings,
    mistaken: &'a BTreeSet<Key>,
    mistakes: Vec<Mistake>,
}

impl Relations<'_> {
    fn lease_outlasts_heartbeats(&mut self) {
        let (lease, beat) = (self.whole("worker.lease_secs"), self.whole("worker.heartbeat_secs"));
        let least = beat.map(|beat| 3 * beat + LEASE_MARGIN_SECS);
        if let (Some(lease), Some(least)) = (lease, least)
            && lease < least
        {
            let message = format!(
                "`worker.lease_secs` is {lease} but must be at least {least} (three times `worker.heartbeat_secs` and \
                 {LEASE_MARGIN_SECS} more), because otherwise a worker that misses one beat loses its jobs"
            );
            self.report("worker.lease_secs", message);
        }
    }

    fn at_most(&mut self, name: &str, ceiling: &str, why: &str) {
        if let (Some(value), Some(most)) = (self.whole(name), self.whole(ceiling))
            && value > most
        {
            let message = format!("`{name}` is {value} but must not be more than `{ceiling}` ({most}){why}");
            self.report(name, message);
        }
    }

    fn at_least(&mut self, name: &str, floor: &str, why: &str) {
        if let (Some(value), Some(least)) = (self.whole(name), self.whole(floor))
            && value < least
        {
            self.report(name, format!("`{name}` is {value} but must be at least `{floor}` ({least}), {why}"));
        }
    }

    /// What is kept for ever has 0 days, which is the longest.
    fn owners_keep_no_longer(&mut self) {
        let keys = self.settings.0.keys().filter(|key| key.0[0] == "owner_retention");
        for key in keys.cloned().collect::<Vec<_>>() {
            let Some(ceiling) = key.0.last().map(|days| format!("retention.{days}")) else { continue };
            if let (Some(days), Some(most)) = (self.whole_of(&key), self.whole(&ceiling))
                && most != 0
                && (days == 0 || days > most)
            {
                let message = format!(
                    "`{key}` is {days} but must be from 1 to {most} (`{ceiling}`): an owner's jobs may be kept for a \
                     shorter time than those of others, and not for longer"
                );
                self.report_at(&key, message);
            }
        }
    }

    fn a_certificate_has_its_key(&mut self) {
        let [certificate, key] = ["api.tls_certificate", "api.tls_key"].map(|name| self.text(name));
        let missing = match (certificate.is_empty(), key.is_empty()) {
            (true, false) => ["api.tls_key", "api.tls_certificate"],
            (false, true) => ["api.tls_certificate", "api.tls_key"],
            (true, true) | (false, false) => return,
        };
        self.report(
            missing[0],
            format!("`{}` is set, and `{}` is not: TLS needs both", missing[0], missing[1]),
        );
    }

    /// A lock that is asked for and not there must not go unnoticed.
    fn roles_are_of_postgresql(&mut self) {
        if !self.text("store.tenant_role").is_empty() && self.text("store.url").starts_with("sqlite:") {
            let message = "`store.tenant_role` is set, and `store.url` is that of SQLite, which has no roles";
            self.report("store.tenant_role", message.to_owned());
        }
    }

    fn events_that_are_sent_are_recorded(&mut self) {
        let is_off =
            !self.mistaken.contains(&Key::new("events.record")) && self.text("events.record") == "off";
        for (listener, to_do) in [("events.exchange", "publish"), ("callbacks.enabled", "send")] {
            if is_off && self.is_on(listener) {
                let message = format!(
                    "`{listener}` is true, and `events.record` is \"off\": there are no events to {to_do}"
                );
                self.report(listener, message);
            }
        }
    }

    /// Permissions of the broker are by name, whatever has it.
    fn no_lane_is_named_like_the_exchange(&mut self) {
        let lane = "queues.events.concurrency";
        if self.is_on("events.exchange") && self.settings.0.contains_key(&Key::new(lane)) {
            let message = "`queues.events` is a lane whose queue has the name of the exchange for events (`events.exchange`), so that \
                           whoever may read events could take its jobs; give the lane another name";
            self.report(lane, message.to_owned());
        }
    }

    fn is_on(&self, name: &str) -> bool {
        let setting = self.settings.0.get(&Key::new(name));
        setting.and_then(|setting| setting.value.as_bool()) == Some(true)
    }

    fn lanes_have_a_concurrency(&mut self, lanes: &BTreeMap<Key, Origin>) {
        for (lane, origin) in lanes {
            let concurrency = lane.child("concurrency");
            if !self.settings.0.contains_key(&concurrency) && !self.mistaken.contains(&concurrency) {
                let message = format!("`{concurrency}` is missing; every lane needs one");
                self.mistakes.push(Mistake { message, origin: Some(origin.clone()) });
            }
        }
    }

    fn consumed_lanes_exist(&mut self) {
        let key = Key::new("worker.queues");
        let Some(setting) = self.settings.0.get(&key).filter(|_| !self.mistaken.contains(&key)) else {
            return;
        };
        let lanes: BTreeSet<&str> = self
            .settings
            .0
            .keys()
            .chain(self.mistaken)
            .filter(|key| key.0[0] == "queues")
            .filter_map(|key| key.0.get(1).map(String::as_str))
            .collect();
        let consumed = setting.value.as_array().into_iter().flatten().filter_map(Value::as_str);
        for name in consumed.filter(|name| !lanes.contains(name)) {
            let known = lanes.iter().copied().collect::<Vec<_>>().join(", ");
            let message = format!("`worker.queues` names `{name}`, which is not in [queues] ({known})");
            self.mistakes.push(Mistake { message, origin: Some(setting.origin.clone()) });
        }
    }

    fn no_lane_is_dead(&mut self) {
        let name = format!("queues.{}.concurrency", QueueName::DEAD);
        if self.settings.0.contains_key(&Key::new(&name)) {
            let message =
                "`queues.dead` is the lane of what the broker dead-letters; give the lane another name";
            self.report(&name, message.to_owned());
        }
    }

    /// Empty where it is not set.
    fn text(&self, name: &str) -> &str {
        let setting = self.settings.0.get(&Key::new(name));
        setting.and_then(|setting| setting.value.as_str()).unwrap_or_default()
    }

    /// A number that is not mistaken.
    fn whole(&self, name: &str) -> Option<i64> {
        self.whole_of(&Key::new(name))
    }

    fn whole_of(&self, key: &Key) -> Option<i64> {
        if self.mistaken.contains(key) { None } else { self.settings.whole(key) }
    }

    fn report(&mut self, name: &str, message: String) {
        self.report_at(&Key::new(name), message);
    }

    fn report_at(&mut self, key: &Key, message: String) {
        let origin = self.settings.0.get(key).map(|setting| setting.origin.clone());
        self.mistakes.push(Mistake { message, origin: origin.filter(|origin| *origin != Origin::Default) });
    }
}
