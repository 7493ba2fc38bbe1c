//! HTTP/2 with prior knowledge, stream by stream.

use std::sync::Arc;

use axum::http::{Response, request::Parts};
use h2::{Reason, RecvStream, server::SendResponse};
use tokio::{net::TcpStream, sync::Notify, task::JoinSet};

use super::{
    Answer, Request, State,
    answer::{Content, End},
};

/// One connection, with all its streams at once.
pub(super) async fn serve(state: Arc<State>, stream: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let cut = Arc::new(Notify::new());
    let mut streams = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = cut.notified() => return,
        };
        let Some(Ok((request, mut respond))) = accepted else { return };
        let answer = state.next();
        if answer.is_unread {
            respond.send_reset(Reason::REFUSED_STREAM);
            continue;
        }
        let (state, cut) = (state.clone(), cut.clone());
        let (parts, body) = request.into_parts();
        streams.spawn(async move {
            let request = read(parts, body).await;
            let answer = state.decide(request, answer).await;
            match answer.end {
                End::Stay => send(&mut respond, answer),
                End::Close => cut.notify_one(),
                End::Reset => respond.send_reset(Reason::INTERNAL_ERROR),
                End::Hang => panic!("only connections hang, not streams"),
            }
        });
    }
}

async fn read(parts: Parts, mut body: RecvStream) -> Request {
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let mut head = format!("{} {target} HTTP/2.0\r\n", parts.method);
    for (name, value) in &parts.headers {
        head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
    }
    let mut bytes = Vec::new();
    while let Some(Ok(part)) = body.data().await {
        bytes.extend_from_slice(&part);
        // What is not released would stop the client once the window is full.
        drop(body.flow_control().release_capacity(part.len()));
    }
    Request { head, body: String::from_utf8(bytes).unwrap() }
}

fn send(respond: &mut SendResponse<axum::body::Bytes>, answer: Answer) {
    let Content::Whole { status, headers, body } = answer.content else {
        panic!("only complete answers go over HTTP/2");
    };
    let mut response = Response::builder().status(status.split(' ').next().unwrap());
    for (name, value) in headers {
        response = response.header(name, value);
    }
    respond.send_response(response.body(()).unwrap(), false).unwrap().send_data(body.into(), true).unwrap();
}
