//! Errors as problem details (RFC 9457), and the one place that picks a status code for them.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Serialize, Serializer};
use serde_json::json;
use utoipa::ToSchema;

use crate::{
    failure::chain,
    job::{EnvelopeError, EnvelopeReason, IllegalMove, State, Transition, Unfit},
    store::{Conflict, Decided, StoreError, StoreErrorKind},
    string_enum::string_enum,
    telemetry::seldom::Seldom,
    tool::ToolError,
};

static NOT_ANSWERED: Seldom = Seldom::new();

/// The media type of problems.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

string_enum! {
    /// What went wrong, for programs: the end of the problem's `type`.
    Kind {
        /// The request is not HTTP as this API speaks it: a parameter, a header or JSON that cannot be read.
        BadRequest = "bad-request",
        /// It shows no valid key.
        Unauthorized = "unauthorized",
        /// Its key may not do this.
        Forbidden = "forbidden",
        /// It comes from a web page of another site, or from a name that is not this API's.
        ForeignOrigin = "foreign-origin",
        NotFound = "not-found",
        MethodNotAllowed = "method-not-allowed",
        /// The body did not come in time.
        Timeout = "timeout",
        TooLarge = "too-large",
        UnsupportedMediaType = "unsupported-media-type",
        /// The job can never run as it is.
        InvalidJob = "invalid-job",
        /// Items of the batch can never run as they are.
        InvalidBatch = "invalid-batch",
        /// The items do not go on where the batch ends.
        OutOfOrder = "out-of-order",
        /// The `id` is known with another body or for somebody else.
        IdConflict = "id-conflict",
        /// The `idempotency_key` is known with another body.
        KeyConflict = "key-conflict",
        /// The job is in a state that does not allow it.
        WrongState = "wrong-state",
        /// No events are recorded.
        NotRecorded = "not-recorded",
        /// Events were removed for their age.
        EventsRemoved = "events-removed",
        /// It is not as whoever asks has read it.
        EditedMeanwhile = "edited-meanwhile",
        /// It would perhaps repeat an effect, or run too early, and was not forced.
        NeedsForce = "needs-force",
        /// Too many wrong keys came from its address, or too much from its key, or too much is under way.
        TooManyRequests = "too-many-requests",
        /// Others have sent too much at once.
        Busy = "busy",
        /// The database does not answer, or has no schema yet.
        Unavailable = "unavailable",
        Internal = "internal",
        /// The tool API does not answer, or not as it should.
        ToolApi = "tool-api",
        /// This process does not know the tool API.
        NoToolApi = "no-tool-api",
    }
}

impl Kind {
    /// The `type` of a problem.
    pub(super) fn urn(self) -> String {
        format!("urn:errand:problem:{self}")
    }

    /// Whether a problem of this kind may name fields that are wrong.
    pub(super) fn may_be_about_fields(self) -> bool {
        matches!(
            self,
            Self::BadRequest | Self::InvalidJob | Self::InvalidBatch | Self::IdConflict | Self::KeyConflict
        )
    }

    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden | Self::ForeignOrigin => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::InvalidJob | Self::InvalidBatch | Self::IdConflict | Self::KeyConflict => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Self::WrongState | Self::NeedsForce | Self::OutOfOrder | Self::NotRecorded => {
                StatusCode::CONFLICT
            }
            Self::EventsRemoved => StatusCode::GONE,
            Self::EditedMeanwhile => StatusCode::PRECONDITION_FAILED,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Busy | Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoToolApi => StatusCode::NOT_IMPLEMENTED,
            Self::ToolApi => StatusCode::BAD_GATEWAY,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::BadRequest => "The request cannot be read",
            Self::Unauthorized => "There is no valid key",
            Self::Forbidden => "This key may not do this",
            Self::ForeignOrigin => "The request comes from another site",
            Self::NotFound => "There is nothing here",
            Self::MethodNotAllowed => "Another method is needed",
            Self::Timeout => "The body did not come in time",
            Self::TooLarge => "The body is too large",
            Self::UnsupportedMediaType => "The body must be JSON",
            Self::InvalidJob => "The job cannot run as it is",
            Self::InvalidBatch => "Items of the batch cannot run as they are",
            Self::OutOfOrder => "The batch goes on elsewhere",
            Self::IdConflict => "The id is used by another job",
            Self::KeyConflict => "The idempotency key is used by another request",
            Self::WrongState => "The state does not allow this",
            Self::NeedsForce => "This has to be forced",
            Self::EditedMeanwhile => "It is not as it was read",
            Self::NotRecorded => "No events are recorded",
            Self::EventsRemoved => "Events were removed for their age",
            Self::TooManyRequests => "There are too many requests",
            Self::Busy => "The API is busy",
            Self::Unavailable => "The database cannot be used now",
            Self::Internal => "errand failed",
            Self::ToolApi => "The tool API does not answer",
            Self::NoToolApi => "This process does not know the tool API",
        }
    }
}

/// An answer other than what was asked for.
#[derive(Debug)]
pub(super) struct Problem {
    kind: Kind,
    /// One sentence or two that say what to do. No customer's data.
    detail: String,
    /// What is wrong with fields of the body, or with the items of a batch, as far as that is what is wrong.
    errors: Vec<FieldError>,
    /// In how many seconds the same may be sent again, where that is not as usual for the kind.
    again_in: Option<u16>,
}

/// What is wrong with a field of the body, or with one item of a batch.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FieldError {
    /// Where it is in the body (RFC 6901), such as `/run_at`, and in a batch `/items/3` or `/items/3/run_at`.
    pub(super) pointer: String,
    /// What is wrong, for programs.
    #[schema(value_type = String)]
    pub(super) r#type: FieldFault,
    /// What to do, for people.
    pub(super) detail: String,
}

/// A kind, which is shown by its URN.
#[derive(Debug, Clone, Copy)]
pub(super) struct FieldFault(pub(super) Kind);

impl Serialize for FieldFault {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.urn())
    }
}

impl Problem {
    pub(super) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), errors: Vec::new(), again_in: None }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Says in how many seconds the same may be sent again.
    pub(super) fn again_in(self, seconds: u16) -> Self {
        Self { again_in: Some(seconds), ..self }
    }

    /// A batch that is refused because of some of its items: how many are wrong, and what is wrong with the first ones.
    pub(super) fn of_items(errors: Vec<FieldError>, wrong: usize) -> Self {
        let listed = errors.len();
        let which = if wrong > listed { format!("the first {listed} of {wrong}") } else { "the".to_owned() };
        let detail = format!(
            "nothing was enqueued: `errors` has {which} items that cannot run as they are; mend them, and send all again"
        );
        Self { errors, ..Self::new(Kind::InvalidBatch, detail) }
    }

    /// The same about a field of the body.
    pub(super) fn about(self, field: Option<&str>) -> Self {
        let error = |field| FieldError {
            pointer: format!("/{field}"),
            r#type: FieldFault(self.kind),
            detail: self.detail.clone(),
        };
        Self { errors: field.map(error).into_iter().collect(), ..self }
    }

    /// The same about one item of a batch.
    pub(super) fn about_item(self, pointer: String) -> FieldError {
        FieldError { pointer, r#type: FieldFault(self.kind), detail: self.detail }
    }

    /// An ID in a path that is nothing's, because it is none.
    pub(super) fn no_uuid() -> Self {
        Self::new(
            Kind::NotFound,
            "there is nothing with this ID, because it is no UUID; give it as it was told",
        )
    }

    pub(super) fn no_callback() -> Self {
        Self::new(Kind::NotFound, "there is no callback of this owner")
    }

    pub(super) fn no_job() -> Self {
        let detail = "there is no job with this ID: it was never here, it was removed after its retention, or an app's \
                      message with it was not taken from the broker yet";
        Self::new(Kind::NotFound, detail)
    }

    /// Why a decision changed nothing; `None` if it was carried out.
    pub(super) fn undecided(decided: Decided) -> Option<Self> {
        Some(match decided {
            Decided::Now(_) => return None,
            Decided::Unknown => Self::no_job(),
            Decided::Illegal(illegal) => Self::new(Kind::WrongState, illegal_move(illegal)),
            Decided::HasNotRun(reason) => Self::new(
                Kind::WrongState,
                format!(
                    "the job is held for {reason} and has not run, so it can only be let go to run: {{\"how\": \"retry\"}}"
                ),
            ),
            Decided::MayHaveActed => Self::new(
                Kind::NeedsForce,
                "its last call may have had its effect, which running it again would repeat; look at its attempts, and \
                 send {\"force\": true} if that is wanted",
            ),
            Decided::Changed => Self::new(
                Kind::WrongState,
                "the job kept changing while it was decided about; read it again, and send the request once more",
            ),
            Decided::Early => Self::new(
                Kind::NeedsForce,
                "its `run_at` is still to come; send {\"now\": true} to run it at once",
            ),
        })
    }
}

/// Why a decision is none for the state of a job, and which one is.
fn illegal_move(illegal: IllegalMove) -> String {
    let instead = match illegal.from {
        State::Held if illegal.action != Transition::Cancel.action() => "; `release` lets it go",
        State::Running => "; `cancel` keeps its call from being repeated",
        State::Failed | State::Cancelled if illegal.action != Transition::Restart.action() => {
            "; `retry` runs it again"
        }
        _ => "",
    };
    format!("{illegal}{instead}")
}

impl From<ToolError> for Problem {
    fn from(error: ToolError) -> Self {
        match error {
            ToolError::NotFound(_) => Self::new(Kind::NotFound, "the tool API knows nothing of this name"),
            error => Self::new(Kind::ToolApi, format!("{error}; try again later")),
        }
    }
}

impl From<EnvelopeError> for Problem {
    fn from(error: EnvelopeError) -> Self {
        let kind = match error.reason {
            EnvelopeReason::TooLarge => Kind::TooLarge,
            EnvelopeReason::Malformed => Kind::BadRequest,
            _ => Kind::InvalidJob,
        };
        Self::new(kind, error.message).about(error.field)
    }
}

impl From<Unfit> for Problem {
    fn from(unfit: Unfit) -> Self {
        Self::new(Kind::InvalidJob, unfit.error.message()).about(unfit.field)
    }
}

impl From<Conflict> for Problem {
    /// One's own ID with another body and the ID of somebody else's job are the same to whoever asks, so that nobody learns
    /// of other owners' jobs.
    fn from(conflict: Conflict) -> Self {
        match conflict {
            Conflict::Owner | Conflict::Body => {
                Self::new(Kind::IdConflict, Conflict::Body.message()).about(Some("id"))
            }
            Conflict::Key { .. } => {
                Self::new(Kind::KeyConflict, conflict.message()).about(Some("idempotency_key"))
            }
        }
    }
}

impl Problem {
    /// The same of a request that was carried out before this was known.
    pub(super) fn though_done(self) -> Self {
        let detail =
            format!("{}; what was asked for may be done: look with a key that is valid", self.detail);
        Self { detail, ..self }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        if error.kind() == StoreErrorKind::Data {
            return Self::new(
                Kind::BadRequest,
                "the database does not take a value of this request, such as a NUL character",
            );
        }
        // Its text may name hosts and tables, which are for operators.
        if let Some(requests) = NOT_ANSWERED.due(1) {
            tracing::warn!(requests, error = %chain(&error), "requests were not answered because of the database");
        }
        if error.kind() == StoreErrorKind::Schema {
            let detail = "errand's tables are missing in the database, or older than this build: run `errand migrate` where its \
                          settings are, then send the request again";
            return Self::new(Kind::Unavailable, detail);
        }
        let detail = "what was asked for may be done or not; a request with an `id` or an idempotency key may be sent again as \
                      it is, and so may one that only reads; of others look first what they did";
        Self::new(Kind::Unavailable, detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self { kind, detail, errors, again_in } = self;
        let mut body = json!({
            "type": kind.urn(),
            "title": kind.title(),
            "status": kind.status().as_u16(),
            "detail": detail,
        });
        if !errors.is_empty() {
            body["errors"] = json!(errors);
        }
        let json = HeaderValue::from_static(PROBLEM_JSON);
        let mut answer = (kind.status(), [(header::CONTENT_TYPE, json)], body.to_string()).into_response();
        let more = match kind {
            Kind::Busy | Kind::Unavailable => Some((header::RETRY_AFTER, "2")),
            Kind::TooManyRequests => Some((header::RETRY_AFTER, "10")),
            Kind::Unauthorized => Some((header::WWW_AUTHENTICATE, "Bearer")),
            _ => None,
        };
        answer.headers_mut().extend(more.map(|(name, value)| (name, HeaderValue::from_static(value))));
        if let Some(seconds) = again_in {
            answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_documented_with_its_status() {
        const PAGE: &str = include_str!("../../docs/http-api.md");
        for kind in Kind::ALL {
            let row = format!("| `{kind}` | {} |", kind.status().as_u16());
            assert!(PAGE.contains(&row), "{row}");
        }
        let rows = PAGE.lines().skip_while(|line| !line.starts_with("| `urn:")).skip(2);
        assert_eq!(rows.take_while(|line| line.starts_with('|')).count(), Kind::ALL.len());
    }
}
