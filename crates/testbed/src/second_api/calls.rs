//! `POST /tools/execute/{slug}`.

use fastrand::Rng;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    answer::{error, with_usual_headers},
    ledger::{Call, Entry},
    mischief::{self, Mischief, pick, server_error, throttled, up_to, wrong_shape},
    state::State,
    wire::{Act, Answer, Framing, Request},
    world,
};

/// A call that will be run.
struct Accepted {
    /// Its place in the ledger.
    place: usize,
    tool: String,
    argument: Option<String>,
    /// The random numbers of this call, for what goes wrong and for what merely differs.
    rng: Rng,
}

/// How a run ended.
struct Ran {
    successful: bool,
    response: Value,
}

/// Makes a call.
pub(super) async fn execute(state: &State, request: &Request, tool: &str) -> Act {
    let (call, mut accepted) = match accept(state, request, tool) {
        Ok(accepted) => accepted,
        Err(refusal) => {
            state.ledger(|ledger| ledger.refuse());
            return Act::Answer(with_usual_headers(refusal, request));
        }
    };
    let act = match call {
        None => Act::Answer(told(run(state, &mut accepted, true))),
        Some(mischief) => misbehave(state, mischief, &mut accepted).await,
    };
    match act {
        Act::Answer(answer) => Act::Answer(with_usual_headers(answer, request)),
        Act::Close => Act::Close,
    }
}

/// Judges a call, in the order of the facts, and enters it into the ledger.
fn accept(state: &State, request: &Request, tool: &str) -> Result<(Option<Mischief>, Accepted), Answer> {
    let body: Value = serde_json::from_slice(&request.body)
        .ok()
        .filter(Value::is_object)
        .ok_or_else(|| error(400, 400, "HTTP_BadRequest", "The body is no JSON object"))?;
    let text = |field: &str| body[field].as_str().map(str::to_owned);
    let version = text("version");
    let unknown = || error(404, 2401, "Tool_ToolNotFound", &format!("Tool {tool} not found"));
    let toolkit = world::toolkit_of(tool).ok_or_else(unknown)?;
    world::tool(tool, version.as_deref()).ok_or_else(unknown)?;
    if !body["text"].is_null() && !body["arguments"].is_null() {
        return Err(error(400, 400, "HTTP_BadRequest", "Give either text or arguments"));
    }
    let account = text("connected_account_id");
    let owner = text("user_id").or_else(|| text("entity_id")).unwrap_or_default();
    check_account(state, account.as_deref(), &owner, toolkit)?;

    let header = |name| request.header(name).unwrap_or_default().to_owned();
    let argument = body["arguments"]["job"].as_str().map(str::to_owned);
    let job = header("x-errand-job-id");
    let subject = format!("call {job}");
    let nth = state.ledger(|ledger| ledger.ask(&subject));
    let rng = state.trouble(&subject, nth, state.options.rates.call);
    let (mischief, rng) = match rng {
        Some(mut rng) => (rng.choice(&state.options.mischief).copied(), rng),
        None => (None, mischief::rng(state.options.seed, &subject, nth)),
    };
    let call = Call {
        request_id: header("x-request-id"),
        job,
        argument: argument.clone(),
        tool: tool.to_owned(),
        owner,
        version,
        account,
        mischief,
        arrived: state.now(),
        effect: None,
    };
    let place = state.ledger(|ledger| ledger.arrive(call));
    Ok((mischief, Accepted { place, tool: tool.to_owned(), argument, rng }))
}

/// Whether the owner may use the account that is named, or else has one.
fn check_account(state: &State, account: Option<&str>, owner: &str, toolkit: &str) -> Result<(), Answer> {
    let Some(account) = account else {
        if world::is_connected(owner) {
            return Ok(());
        }
        let message = format!("No connected account found for user ID {owner} for toolkit {toolkit}");
        return Err(error(404, 1810, "ActionExecute_ConnectedAccountNotFound", &message));
    };
    if owner.is_empty() {
        let slug = "ActionExecute_ConnectedAccountEntityIdRequired";
        return Err(error(400, 1811, slug, "User ID is required with connected account"));
    }
    let Some((theirs, of)) = world::account_parts(account) else {
        let slug = "ActionExecute_ConnectedAccountNotFound";
        return Err(error(400, 1803, slug, "No connected account found"));
    };
    if theirs != owner {
        state.ledger(|ledger| ledger.stranger());
        let slug = "ActionExecute_ConnectedAccountEntityIdMismatch";
        return Err(error(400, 1812, slug, "The connected account belongs to another user ID"));
    }
    if of != toolkit {
        let message = "The connected account is one of another toolkit";
        return Err(error(400, 400, "HTTP_BadRequest", message));
    }
    Ok(())
}

/// Runs the tool, and writes it down.
fn run(state: &State, call: &mut Accepted, successful: bool) -> Ran {
    let rng = &mut call.rng;
    let log_id = format!("log_{:016x}", rng.u64(..));
    let data = if successful {
        // A number that no double can hold, and a name that no key should lose.
        json!({"tool": call.tool, "job": call.argument, "big": 12_345_678_901_234_567_u64, "größe": null})
    } else {
        let status =
            pick(rng, &[json!(400), json!(404), json!(409), json!(429), json!(500), json!(null)], json!(404));
        json!({"status_code": status, "message": "The provider did not like it"})
    };
    let error = if successful { Value::Null } else { json!("The provider did not like it") };
    let response = json!({"data": data, "error": error, "successful": successful, "log_id": log_id});
    let (now, delay) = (state.now(), up_to(rng, state.options.log_delay));
    let entry = Entry {
        call: call.place,
        log_id,
        successful,
        response: response.clone(),
        ended: now,
        visible: now + delay,
    };
    state.ledger(|ledger| {
        if successful {
            ledger.effect(call.place, now);
        }
        ledger.log(entry);
    });
    Ran { successful, response }
}

/// The plain truth about a run.
fn told(ran: Ran) -> Answer {
    let mut body = ran.response;
    if ran.successful {
        body["session_info"] = Value::Null;
    }
    Answer::json(200, &body)
}

/// Lets something go wrong with a call.
async fn misbehave(state: &State, mischief: Mischief, call: &mut Accepted) -> Act {
    let options = &state.options;
    let answer = match mischief {
        Mischief::CloseBefore => return Act::Close,
        Mischief::CloseAfter => {
            run(state, call, true);
            return Act::Close;
        }
        Mischief::HangBefore => {
            sleep(options.hang).await;
            return Act::Close;
        }
        Mischief::HangAfter => {
            let ran = run(state, call, true);
            sleep(options.hang).await;
            told(ran)
        }
        Mischief::Late => {
            sleep(up_to(&mut call.rng, options.late)).await;
            told(run(state, call, true))
        }
        Mischief::ServerError => {
            perhaps_run(state, call);
            server_error(&mut call.rng, options.huge)
        }
        Mischief::Throttled => throttled(&mut call.rng),
        Mischief::ToolFails => told(run(state, call, false)),
        Mischief::WrongShape => {
            perhaps_run(state, call);
            Answer::json(200, &wrong_shape(&mut call.rng))
        }
        Mischief::ErrorInSuccess => {
            perhaps_run(state, call);
            error(200, 1801, "ActionExecute_ExecutionError", "Something went wrong")
        }
        Mischief::WrongType
        | Mischief::TwiceTheHeaders
        | Mischief::Huge
        | Mischief::CutJson
        | Mischief::Stops
        | Mischief::NoVerdict
        | Mischief::WrongKinds => {
            let ran = run(state, call, true);
            damaged(mischief, ran, &mut call.rng, options.huge)
        }
    };
    Act::Answer(answer)
}

/// Tells of a run that succeeded, with one thing wrong.
fn damaged(mischief: Mischief, ran: Ran, rng: &mut Rng, huge: usize) -> Answer {
    let mut body = ran.response.clone();
    let mut answer = told(ran);
    match mischief {
        Mischief::WrongType => {
            Answer::of(200, pick(rng, &["text/html", "image/png", "nonsense", ""], ""), answer.body)
        }
        Mischief::TwiceTheHeaders => {
            let length = if rng.bool() { answer.body.len() } else { 1 };
            answer
                .with("Content-Type", "text/plain")
                .with("Retry-After", "7")
                .with("Retry-After", "x")
                .with("X-Request-Id", "somebody else's")
                .with("Content-Length", length.to_string())
        }
        Mischief::Huge => {
            body["data"]["more"] = Value::from("x".repeat(huge));
            let framing = pick(rng, &[Framing::Length, Framing::Chunked], Framing::Length);
            Answer::json(200, &body).framed(framing)
        }
        Mischief::CutJson => {
            answer.body.truncate(rng.usize(..answer.body.len()));
            answer
        }
        Mischief::Stops => {
            answer.body.truncate(rng.usize(..answer.body.len()));
            let stops = [Framing::StopsBeforeLength, Framing::StopsBetweenChunks];
            answer.framed(pick(rng, &stops, Framing::StopsBeforeLength))
        }
        Mischief::NoVerdict => {
            if let Some(fields) = body.as_object_mut() {
                fields.remove("successful");
            }
            Answer::json(200, &body)
        }
        Mischief::WrongKinds => {
            match rng.u8(..4) {
                0 => body["log_id"] = json!(17),
                1 => body["successful"] = json!("true"),
                2 => body["successful"] = json!(1),
                _ => body["data"] = json!("done"),
            }
            Answer::json(200, &body)
        }
        _ => answer,
    }
}

/// Runs the tool, or does not.
fn perhaps_run(state: &State, call: &mut Accepted) {
    if call.rng.bool() {
        run(state, call, true);
    }
}
