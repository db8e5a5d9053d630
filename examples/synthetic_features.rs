//! Writes a made-up feature table, to try pages on: `synthetic_features OUT [LATENTS] [plain|hostile]`.

#[path = "../tests/it/synthetic.rs"]
mod synthetic;

fn main() -> lapidary::Result<()> {
    let mut args = std::env::args().skip(1);
    let out = std::path::PathBuf::from(args.next().unwrap_or_else(|| "features".into()));
    let n = args.next().and_then(|n| n.parse().ok()).unwrap_or(500);
    let (table, examples) = synthetic::table(n, 0, args.next().as_deref() == Some("hostile"));
    table.save(&out)?;
    examples.save(&out)
}
