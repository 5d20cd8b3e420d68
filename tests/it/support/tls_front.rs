//! TLS in front of an origin that knows none: it ends the encryption and passes bytes on, both ways.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::ports::free_addr;
use super::{RUNTIME, wait_for};

/// Where the certificates of the tests are; nobody has the key of `ca.pem`, which signed them, any more.
pub fn certificate(name: &str) -> PathBuf {
    PathBuf::from(format!("{}/tests/fixtures/tls/{name}.pem", env!("CARGO_MANIFEST_DIR")))
}

/// A listener that speaks TLS; stops when dropped.
#[derive(Debug)]
pub struct TlsFront {
    addr: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl TlsFront {
    /// In front of `origin`, with this certificate: `server` is for 127.0.0.1 and localhost, `elsewhere` is not.
    /// `expired` is for them too, signed by `expired-ca`, and ended with the year 2020.
    pub fn to(origin: SocketAddr, name: &str) -> Self {
        let chain = CertificateDer::pem_file_iter(certificate(name)).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(certificate(&format!("{name}-key"))).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (listener, addr) = wait_for(async {
            loop {
                let addr = free_addr();
                if let Ok(listener) = TcpListener::bind(addr).await {
                    return (listener, addr);
                }
            }
        });
        let (stop, stopped) = oneshot::channel::<()>();
        RUNTIME.spawn(async move {
            tokio::select! {
                () = accept(listener, acceptor, origin) => {}
                _ = stopped => {}
            }
        });
        Self { addr, _stop: stop }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, origin: SocketAddr) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        connections.spawn(async move {
            // A client that refuses the certificate ends here.
            let Ok(mut inner) = acceptor.accept(stream).await else { return };
            let Ok(mut outer) = TcpStream::connect(origin).await else { return };
            let _ = tokio::io::copy_bidirectional(&mut inner, &mut outer).await;
        });
    }
}
