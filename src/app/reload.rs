//! The configuration read again while the service runs: what is taken over, and what has to wait for a restart.

use super::App;
use crate::config::Config;
use crate::engine::{Options, read_policy};
use crate::telemetry::log::Options as LogOptions;

impl App {
    /// Takes over what may change at run time: `rollouts`, but for the length of the shadow's queue, and the share of requests that are
    /// logged; certificates and the keys of callers are read again from the files that they have. What else differs is told and waits for a restart. The level
    /// of the log is the caller's.
    pub(super) fn reload(&mut self, next: Config) {
        let is_taken = |key: &str| {
            let taken = ["rollouts.", "log.level", "log.request_share"].iter().any(|prefix| key.starts_with(prefix));
            taken && key != "rollouts.shadow_queue_max"
        };
        let (taken, waiting): (Vec<String>, Vec<String>) =
            self.config.changes(&next).into_iter().partition(|key| is_taken(key));
        self.engine.set_options(next.rollouts.clone());
        self.shared.set_request_share(next.log.request_share);
        tracing::info!(changed = taken.join(", "), needs_a_restart = waiting.join(", "), "configuration read again");
        // What waits is told at the next time too: it is not taken over here either.
        let shadow_queue_max = self.config.rollouts.shadow_queue_max;
        self.config.rollouts = Options { shadow_queue_max, ..next.rollouts };
        self.config.log = LogOptions { format: self.config.log.format, ..next.log };
        if let Some(access) = self.access.clone() {
            // An issuer that takes its time must not hold up the rest.
            let read = move || access.refresh(true);
            let _ = std::thread::Builder::new().name("mainstay-access-now".to_owned()).spawn(read);
        }
        self.tell_policies();
        self.tls.iter().for_each(|tls| tls.read_again());
    }

    /// Says which policy files are not what is in force: a file by itself changes nothing.
    fn tell_policies(&self) {
        for entry in &self.config.models.serve {
            let path = entry.policy.as_deref().unwrap_or(&self.config.models.policy);
            let in_force = self.engine.serving(Some(&entry.name)).map(|serving| serving.policy.clone());
            match (read_policy(path), in_force) {
                (Ok(policy), Ok(in_force)) if policy.document() != in_force.document() => tracing::warn!(
                    model = entry.name,
                    file = %path.display(),
                    "the file is not the policy in force: `mainstay policy apply` puts it there"
                ),
                (Err(error), _) => tracing::warn!(model = entry.name, cause = %error, "the policy file cannot be used"),
                _ => {}
            }
        }
    }
}
