//! The servers of a run, which all its rounds share.

use anyhow::Result;
use errand_testbed::services::{
    Place,
    postgres::{self, Postgres},
    rabbitmq::{self, RabbitMq},
};

use super::backend::Backend;

/// The services of a run.
#[derive(Debug)]
pub(super) struct Cluster {
    /// `None` for the embedded pair.
    pub(super) services: Option<Services>,
    pub(super) place: Place,
}

/// The servers that all rounds share.
#[derive(Debug)]
pub(super) struct Services {
    pub(super) postgres: Postgres,
    pub(super) rabbitmq: RabbitMq,
}

impl Cluster {
    pub(super) async fn prepare(backend: Backend) -> Result<Self> {
        let place = Place::default();
        let services = match backend {
            Backend::Embedded => None,
            Backend::Amqp => {
                let (postgres, rabbitmq) = tokio::try_join!(
                    Postgres::start(&place, postgres::Options::default()),
                    RabbitMq::start(&place, rabbitmq::Options::default()),
                )?;
                Some(Services { postgres, rabbitmq })
            }
        };
        Ok(Self { services, place })
    }
}
