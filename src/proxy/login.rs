//! The phases in which the answer to a login passes: its head is read, its body copied on the way, and neither changed
//! nor held back.

use std::sync::Arc;

use http::Method;
use pingora::http::ResponseHeader;

use super::Exchange;
use crate::pipeline::login::{Login, Opening};
use crate::route::Route;
use crate::sessions::login::{BodyCopy, NotOpened, Place, in_cookies, in_header};

/// Looks at the head of an answer. What it tells is being opened then, and the client should not see it before.
pub(super) fn head(exchange: &mut Exchange, method: &Method, response: &ResponseHeader) -> Option<Opening> {
    // An earlier attempt may have broken off.
    exchange.login_body = None;
    let route = login_route(exchange).filter(|_| response.status.is_success())?;
    // Whoever asks for a head, or for what may be asked, need not mean to log in.
    let expects_token = !matches!(*method, Method::HEAD | Method::OPTIONS);
    let settings = route.login.as_ref()?;
    let headers = &response.headers;
    let found = match &settings.place {
        Place::Header(name) => in_header(headers, name),
        Place::Cookie(name) => in_cookies(headers, name, exchange.gateway.shared.clock.now()),
        Place::Json(_) if !expects_token => return None,
        Place::Json(_) => match BodyCopy::new(response.status, headers, settings.peek) {
            Ok(copy) => {
                exchange.login_body = Some(Box::new(copy));
                return None;
            }
            Err(reason) => Err(reason),
        },
    };
    if !expects_token && found == Err(NotOpened::Absent) {
        return None;
    }
    login(exchange, Arc::clone(&route)).and_then(|login| login.found(found))
}

/// Copies a piece of the body. After the last one the session is known on this instance; the store is told meanwhile.
pub(super) fn piece(exchange: &mut Exchange, piece: Option<&[u8]>, is_last: bool) {
    let Some(copy) = &mut exchange.login_body else { return };
    match copy.add(piece.unwrap_or_default()) {
        // Where the client knows how much comes, it does not wait for more.
        Ok(()) if is_last || copy.is_whole() => end(exchange),
        Ok(()) => {}
        Err(reason) => give_up(exchange, reason),
    }
}

/// The body ended, unless that was clear before.
pub(super) fn end(exchange: &mut Exchange) {
    let Some(copy) = exchange.login_body.take() else { return };
    let Some(route) = login_route(exchange) else { return };
    if let Some(Place::Json(pointer)) = route.login.as_ref().map(|settings| &settings.place) {
        let found = copy.token(pointer);
        let found = found.as_deref().map_err(|reason| *reason);
        // Nobody waits for it: this must not be held back.
        let _ = login(exchange, Arc::clone(&route)).and_then(|login| login.found(found));
    }
}

/// The body was not read to its end.
pub(super) fn give_up(exchange: &mut Exchange, reason: NotOpened) {
    if exchange.login_body.take().is_some()
        && let Some(route) = login_route(exchange)
        && let Some(login) = login(exchange, route)
    {
        login.found(Err(reason));
    }
}

/// The route, where it is one that logs in.
fn login_route(exchange: &Exchange) -> Option<Arc<Route>> {
    exchange.admitted().map(|admitted| &admitted.route).filter(|route| route.login.is_some()).cloned()
}

fn login(exchange: &Exchange, route: Arc<Route>) -> Option<Login> {
    let client = exchange.context.client?.ip;
    Some(Login { gateway: Arc::clone(&exchange.gateway), route, client })
}
