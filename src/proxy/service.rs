//! The services that accept connections: HTTP/1.1, and HTTP/2 in cleartext for internal callers.

use std::sync::Arc;
use std::time::Duration;

use pingora::apps::HttpServerOptions;
use pingora::proxy::HttpProxy;
use pingora::server::configuration::ServerConf;
use pingora::services::listening::Service;
use prometheus::IntGauge;

use super::Proxy;
use super::connections::Counted;

/// A service of the public listeners.
pub type ProxyService = Service<Counted<HttpProxy<Proxy>>>;

/// The HTTP/1.1 service; addresses are added by the caller. `open` counts its connections.
pub fn http1(conf: &Arc<ServerConf>, proxy: Proxy, open: IntGauge) -> ProxyService {
    service(conf, proxy, open, "http", HttpServerOptions::default())
}

/// The service for HTTP/2 with prior knowledge (RFC 9113 section 3.3). Requests shorter than the preface wait in
/// vain, so it belongs on internal listeners only.
pub fn h2c(conf: &Arc<ServerConf>, proxy: Proxy, open: IntGauge, idle: Duration) -> ProxyService {
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    options.h2_idle_timeout = Some(idle);
    service(conf, proxy, open, "h2c", options)
}

fn service(
    conf: &Arc<ServerConf>,
    proxy: Proxy,
    open: IntGauge,
    name: &str,
    options: HttpServerOptions,
) -> ProxyService {
    let current = Arc::clone(&proxy.current);
    let h2c = options.h2c;
    let mut application = HttpProxy::new(proxy, Arc::clone(conf));
    application.handle_init_modules();
    application.server_options = Some(options);
    Service::new(name.to_owned(), Counted::new(application, open, current, h2c))
}
