//! Injects faults: what each does, from its beginning to its end. When an injection is over, everything that it
//! broke is whole again.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use errand::{
    shutdown::ONE_STOP,
    worker::{CrashPlan, CrashPoint},
};
use errand_testbed::services::proxy::Proxy;
use fastrand::Rng;
use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};
use tokio::time::sleep;

use super::{
    backend::Backend,
    cluster::{Cluster, Services},
    environment::{DRAIN, Environment, LANE, LEASE, SETTLE, Slot},
    fault::Fault,
    listeners::{Manner, Receiver},
    tool_api::Log,
};

/// Longer than the lease, so that the others have taken over, and shorter than lease and [`SETTLE`] together: a
/// worker that stands still between its last look at its lease and the first byte of a call sends it when it
/// goes on, and no later than that may a call arrive.
const BEYOND_THE_LEASE: Duration = Duration::from_secs(LEASE.as_secs() + 2);

/// How long a worker that was told to end may take, with what a busy machine adds.
const END: Duration = Duration::from_secs(DRAIN.as_secs() + 10);

/// How long a worker may take to reach the point at which it shall crash.
const CRASH: Duration = Duration::from_secs(10);

/// The same for one that was told twice.
const END_AT_ONCE: Duration = Duration::from_secs(5);

/// How long it may take until the receiver of callbacks gets the first one.
const ASKED: Duration = Duration::from_secs(10);

/// How long the lock of a database file is waited for. SQLite's locks are not handed over in turn, and a busy worker
/// takes its own again at once.
const LOCK: Duration = Duration::from_secs(60);

/// Faults of one round of [`Fault::Everything`].
const MIXED: usize = 4;

/// Injects faults into one round.
pub(super) struct Injector<'a> {
    pub(super) environment: &'a mut Environment,
    pub(super) receiver: &'a Receiver,
    pub(super) cluster: &'a Cluster,
    pub(super) backend: Backend,
    pub(super) rng: &'a mut Rng,
}

impl Injector<'_> {
    pub(super) async fn run(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Everything => {
                let faults = Fault::mixed(self.backend);
                for _ in 0..MIXED {
                    self.environment.api.misbehave().await?;
                    let fault = faults[self.rng.usize(..faults.len())];
                    self.inject(fault).await.with_context(|| format!("during {}", fault.name()))?;
                    self.environment.start_workers().await?;
                }
                self.environment.api.heal().await
            }
            fault => self.inject(fault).await,
        }
    }

    async fn inject(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Calm | Fault::ShortTimeouts => Ok(()),
            Fault::LargeResults => {
                self.environment.api.be_large().await?;
                sleep(self.random_time(5_000..8_000)).await;
                self.environment.api.heal().await
            }
            Fault::UnknownWords => self.unknown_words().await,
            Fault::LossyPolicy => self.lossy_policy().await,
            Fault::FewConnections => self.few_connections().await,
            Fault::FullDisk => self.full_disk().await,
            Fault::Crash(point) => self.crash(point).await,
            Fault::KillWorkers => self.kill_workers().await,
            Fault::FreezeWorker => self.freeze_worker().await,
            Fault::RollingRestart => self.rolling_restart().await,
            Fault::SecondSignal => self.second_signal().await,
            Fault::CutBroker => self.cut(|slot| slot.broker.as_ref()).await,
            Fault::StallBroker => self.stall(|slot| slot.broker.as_ref()).await,
            Fault::CutDatabase => self.cut(|slot| slot.database.as_ref()).await,
            Fault::StallDatabase => self.stall(|slot| slot.database.as_ref()).await,
            Fault::DeleteQueue => self.delete_queue().await,
            Fault::Partition => self.partition().await,
            Fault::KillBroker | Fault::FreezeBroker | Fault::KillDatabase | Fault::FreezeDatabase => {
                self.fault_of_services(fault).await
            }
            Fault::LockDatabase => self.lock_database().await,
            Fault::ApiFaults | Fault::LogsLate | Fault::LogsRefused | Fault::LogsLost | Fault::Everything => {
                self.api_faults(fault).await
            }
            Fault::ApiGone => {
                sleep(self.random_time(1_000..2_000)).await;
                self.environment.api_proxy.cut().await?;
                sleep(self.random_time(2_000..5_000)).await;
                self.environment.api_proxy.heal().await
            }
            Fault::ApiStalled => {
                sleep(self.random_time(1_000..2_000)).await;
                // What was sent arrives afterwards, but before the log counts as settled.
                self.environment.api_proxy.stall();
                sleep(self.random_time(3_000..4_500)).await;
                self.environment.api_proxy.heal().await
            }
            Fault::ReceiverFaults => self.receiver_faults().await,
        }
    }

    /// A time between these milliseconds.
    fn random_time(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.u64(range))
    }

    fn any_slot(&mut self) -> usize {
        self.rng.usize(..self.environment.slots.len())
    }

    /// Crashes a worker at the point three times, each time after a few passages.
    async fn crash(&mut self, point: CrashPoint) -> Result<()> {
        if point == CrashPoint::DuringCall {
            // Otherwise calls are over before the crash.
            self.environment.api.be_slow().await?;
        }
        for _ in 0..3 {
            // Some points are passed once for many jobs.
            let passage = match point {
                CrashPoint::BeforeClaim | CrashPoint::BeforeAck => self.rng.u32(1..4),
                _ => self.rng.u32(1..20),
            };
            let slot = self.any_slot();
            let slot = &mut self.environment.slots[slot];
            slot.kill().await?;
            slot.start(Some(CrashPlan { point, passage })).await?;
            if let Some(process) = &mut slot.process {
                // If no more jobs come by, it stays as it is, and is killed at last.
                let _crashed = process.ended_within(CRASH).await?;
            }
            slot.kill().await?;
            sleep(self.random_time(0..1_000)).await;
            self.environment.start_workers().await?;
        }
        self.environment.api.heal().await
    }

    async fn kill_workers(&mut self) -> Result<()> {
        for _ in 0..4 {
            sleep(self.random_time(300..1_500)).await;
            let slot = self.any_slot();
            self.environment.slots[slot].kill().await?;
            sleep(self.random_time(0..500)).await;
            self.environment.start_workers().await?;
        }
        Ok(())
    }

    async fn freeze_worker(&mut self) -> Result<()> {
        sleep(self.random_time(300..1_500)).await;
        let slot = self.any_slot();
        let Some(process) = &mut self.environment.slots[slot].process else { return Ok(()) };
        process.signal("STOP").await?;
        sleep(BEYOND_THE_LEASE).await;
        process.signal("CONT").await
    }

    async fn rolling_restart(&mut self) -> Result<()> {
        for _ in 0..2 {
            for slot in &mut self.environment.slots {
                sleep(Duration::from_millis(self.rng.u64(300..1_200))).await;
                slot.stop(END).await?;
                slot.start(None).await?;
            }
        }
        Ok(())
    }

    async fn second_signal(&mut self) -> Result<()> {
        for _ in 0..3 {
            sleep(self.random_time(500..1_500)).await;
            let pause = ONE_STOP + self.random_time(0..300);
            let slot = self.any_slot();
            let slot = &mut self.environment.slots[slot];
            if let Some(mut process) = slot.process.take() {
                process.signal("TERM").await?;
                sleep(pause).await;
                process.signal("TERM").await?;
                let ended = process.ended_within(END_AT_ONCE).await?;
                ensure!(ended.is_some(), "a worker did not end at once at the second signal");
            }
            slot.start(None).await?;
        }
        Ok(())
    }

    /// Cuts the connections of all workers, twice.
    async fn cut(&mut self, which: impl Fn(&Slot) -> Option<&Proxy>) -> Result<()> {
        for _ in 0..2 {
            sleep(self.random_time(300..1_500)).await;
            for proxy in self.environment.slots.iter().filter_map(&which) {
                proxy.cut().await?;
            }
            sleep(self.random_time(200..3_000)).await;
            for proxy in self.environment.slots.iter().filter_map(&which) {
                proxy.heal().await?;
            }
        }
        Ok(())
    }

    async fn stall(&mut self, which: impl Fn(&Slot) -> Option<&Proxy>) -> Result<()> {
        sleep(self.random_time(300..1_500)).await;
        for proxy in self.environment.slots.iter().filter_map(&which) {
            proxy.stall();
        }
        sleep(self.random_time(2_000..8_000)).await;
        for proxy in self.environment.slots.iter().filter_map(&which) {
            proxy.heal().await?;
        }
        Ok(())
    }

    async fn partition(&mut self) -> Result<()> {
        sleep(self.random_time(300..1_500)).await;
        let slot = self.any_slot();
        let Some(proxy) = &self.environment.slots[slot].database else { return Ok(()) };
        proxy.stall();
        sleep(BEYOND_THE_LEASE).await;
        proxy.heal().await
    }

    async fn delete_queue(&mut self) -> Result<()> {
        let Some(vhost) = &self.environment.vhost else { return Ok(()) };
        let path = format!("queues/{}/errand.{LANE}", vhost.encoded_name());
        for pause in [1_000, 2_000] {
            sleep(Duration::from_millis(pause)).await;
            vhost.manage(reqwest::Method::DELETE, &path, None).await?;
        }
        Ok(())
    }

    /// Writes words that this version does not know where a newer one would have written them.
    async fn unknown_words(&mut self) -> Result<()> {
        // Retries leave rows behind that are read again.
        self.environment.api.misbehave().await?;
        for _ in 0..20 {
            sleep(self.random_time(200..400)).await;
            self.environment
                .execute(
                    "update jobs set error_kind = 'quantum'
                     where error_kind is not null and state in ('retryable', 'available')",
                )
                .await?;
        }
        self.environment.api.heal().await
    }

    /// Messages live for a moment only.
    async fn lossy_policy(&mut self) -> Result<()> {
        let Some(vhost) = &self.environment.vhost else { return Ok(()) };
        let path = format!("policies/{}/lossy", vhost.encoded_name());
        // The queues of listeners are not errand's: what the broker throws away there, nobody could tell again.
        let policy = serde_json::json!({
            "pattern": "^errand\\.", "apply-to": "queues",
            "definition": {"message-ttl": 1, "max-length": 2, "overflow": "drop-head"},
        });
        vhost.manage(reqwest::Method::PUT, &path, Some(policy)).await?;
        sleep(Duration::from_secs(4)).await;
        vhost.manage(reqwest::Method::DELETE, &path, None).await?;
        Ok(())
    }

    /// The database grants the workers a few connections, and those that they have are closed.
    async fn few_connections(&mut self) -> Result<()> {
        let Some(role) = self.environment.role.clone() else { return Ok(()) };
        for limit in [8, 5] {
            self.environment.administer(&format!("alter role {role} connection limit {limit}")).await?;
            let close =
                format!("select pg_terminate_backend(pid) from pg_stat_activity where usename = '{role}'");
            self.environment.administer(&close).await?;
            sleep(self.random_time(3_000..5_000)).await;
        }
        self.environment.administer(&format!("alter role {role} connection limit -1")).await
    }

    /// No file of the worker can grow beyond a small size for a while, which is what a full disk does to it.
    async fn full_disk(&mut self) -> Result<()> {
        for _ in 0..2 {
            sleep(self.random_time(500..1_500)).await;
            let Some(process) = &mut self.environment.slots[0].process else { continue };
            process.limit_files(Some(64 * 1024)).await?;
            sleep(Duration::from_millis(self.rng.u64(1_000..4_000))).await;
            process.limit_files(None).await?;
        }
        Ok(())
    }

    async fn fault_of_services(&mut self, fault: Fault) -> Result<()> {
        let Some(Services { postgres, rabbitmq }) = &self.cluster.services else { return Ok(()) };
        sleep(self.random_time(500..1_500)).await;
        let length = self.random_time(500..3_000);
        match fault {
            Fault::KillBroker => {
                rabbitmq.kill9().await?;
                sleep(length).await;
                rabbitmq.restart().await
            }
            Fault::KillDatabase => {
                postgres.kill9().await?;
                sleep(length).await;
                postgres.restart().await
            }
            Fault::FreezeBroker => {
                rabbitmq.pause().await?;
                sleep(length + Duration::from_secs(5)).await;
                rabbitmq.resume().await
            }
            _ => {
                postgres.pause().await?;
                sleep(length + Duration::from_secs(5)).await;
                postgres.resume().await
            }
        }
    }

    async fn lock_database(&mut self) -> Result<()> {
        let Some(file) = self.environment.database_file.clone() else { return Ok(()) };
        for _ in 0..2 {
            sleep(self.random_time(300..1_000)).await;
            let length = self.random_time(1_000..7_000);
            lock_out_writers(&file, length).await?;
        }
        Ok(())
    }

    async fn api_faults(&mut self, fault: Fault) -> Result<()> {
        let api = self.environment.api.clone();
        api.set_log(match fault {
            Fault::LogsLate => Log::Late(SETTLE.mul_f64(0.4)),
            Fault::LogsRefused => Log::Refused,
            Fault::LogsLost => Log::Lost,
            _ => Log::Prompt,
        })
        .await?;
        api.misbehave().await?;
        sleep(self.random_time(5_000..8_000)).await;
        api.heal().await?;
        match fault {
            // What was lost stays lost: a log that loses some entries only cannot be told from one that
            // tells the truth.
            Fault::LogsLost => Ok(()),
            _ => api.set_log(Log::Prompt).await,
        }
    }

    /// The receiver of callbacks fails in each way, one after the other. All of it is over before what failed first is sent for
    /// the third time.
    async fn receiver_faults(&mut self) -> Result<()> {
        self.receiver.is_asked(ASKED).await;
        let mut manners = Manner::ALL;
        self.rng.shuffle(&mut manners);
        for manner in manners {
            sleep(self.random_time(100..500)).await;
            self.receiver.misbehave(manner, self.random_time(600..1_500)).await?;
        }
        Ok(())
    }
}

/// Keeps every other process from writing to a database file for some time, as a backup tool might.
async fn lock_out_writers(file: &Path, length: Duration) -> Result<()> {
    let options = SqliteConnectOptions::new().filename(file).busy_timeout(LOCK);
    let mut connection = options.connect().await.context("cannot open the database file of a round")?;
    sqlx::query("begin immediate").execute(&mut connection).await.context("cannot lock the database file")?;
    sleep(length).await;
    sqlx::query("rollback").execute(&mut connection).await?;
    Ok(connection.close().await?)
}
