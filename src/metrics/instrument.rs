//! Turns a documented field into a registered Prometheus instrument and into one row of `docs/metrics.md`.
//! It knows the shapes of instruments, never what they measure.

use prometheus::core::Collector;
use prometheus::{
    Counter, CounterVec, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

/// One metric as the documentation shows it.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// The full Prometheus name, unit included.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The label names, in order.
    pub labels: &'static [&'static str],
    /// The help text, trimmed.
    pub help: &'static str,
}

/// Upper bounds in seconds of whole requests: from half a millisecond to a minute.
const REQUEST_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Upper bounds in seconds of store calls: dense below the default deadline of 20 ms.
const STORE_SECONDS: &[f64] =
    &[0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.5, 2.0];

/// A Prometheus type that can be made from a description.
pub(super) trait Instrument: Collector + Clone + Sized + 'static {
    /// What the documentation calls it.
    const KIND: &'static str;

    /// Makes an unregistered instrument.
    fn make(described: &Described) -> prometheus::Result<Self>;

    /// Makes and registers an instrument.
    fn register(registry: &Registry, described: &Described) -> prometheus::Result<Self> {
        let instrument = Self::make(described)?;
        registry.register(Box::new(instrument.clone()))?;
        Ok(instrument)
    }
}

macro_rules! instruments {
    ($($ty:ident $kind:literal |$d:ident| $make:expr;)+) => {
        $(impl Instrument for $ty {
            const KIND: &'static str = $kind;

            fn make($d: &Described) -> prometheus::Result<Self> {
                $make
            }
        })+
    };
}

instruments! {
    IntCounter "counter" |d| Self::new(d.name, d.help);
    Counter "counter" |d| Self::new(d.name, d.help);
    IntCounterVec "counter" |d| Self::new(Opts::new(d.name, d.help), d.labels);
    CounterVec "counter" |d| Self::new(Opts::new(d.name, d.help), d.labels);
    IntGauge "gauge" |d| Self::new(d.name, d.help);
    Gauge "gauge" |d| Self::new(d.name, d.help);
    IntGaugeVec "gauge" |d| Self::new(Opts::new(d.name, d.help), d.labels);
    Histogram "histogram" |d| Self::with_opts(histogram(d));
    HistogramVec "histogram" |d| Self::new(histogram(d), d.labels);
}

fn histogram(described: &Described) -> HistogramOpts {
    let buckets = if described.name.contains("_store_") { STORE_SECONDS } else { REQUEST_SECONDS };
    HistogramOpts::new(described.name, described.help).buckets(buckets.to_vec())
}

/// Declares a struct of instruments whose doc comments are the help texts.
macro_rules! families {
    ($(#[$meta:meta])* $vis:vis struct $name:ident {
        $($(#[doc = $help:literal])+ $field:ident: $ty:ident = $metric:literal [$($label:literal),*],)+
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug)]
        $vis struct $name {
            $($(#[doc = $help])+ pub $field: prometheus::$ty,)+
        }

        impl $name {
            /// Every metric with its help text, in the order of the documentation.
            pub const CATALOGUE: &'static [Described] = &[$(Described {
                name: $metric,
                kind: <prometheus::$ty as Instrument>::KIND,
                labels: &[$($label),*],
                help: concat!($($help),+).trim_ascii(),
            },)+];

            fn register(registry: &prometheus::Registry) -> prometheus::Result<Self> {
                Ok(Self {
                    $($field: <prometheus::$ty as Instrument>::register(registry, &Described {
                        name: $metric,
                        kind: <prometheus::$ty as Instrument>::KIND,
                        labels: &[$($label),*],
                        help: concat!($($help),+).trim_ascii(),
                    })?,)+
                })
            }
        }
    };
}
pub(super) use families;
