//! A repository's folder for a hub: the dictionary in a folder named after what it reads, and a model card beside it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::names::module_of;
use super::proof::Exported;
use crate::artefact;
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};

/// Where a dictionary lies in a repository: sparsify names folders after modules, everyone else after hook points.
///
/// # Errors
/// A dictionary without a hook point; a name that would leave the folder.
pub fn folder_of(d: &Dictionary, format: &str) -> Result<PathBuf> {
    let hook = d.provenance.hook.as_str();
    let module = if format == "sparsify" { module_of(hook) } else { None };
    let name = module.unwrap_or_else(|| hook.to_string());
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0']);
    if !plain {
        return Err(Error::request(format!("`{name}` can be no folder of a repository"), "name the hook point that it reads with --hook"));
    }
    Ok(PathBuf::from(name))
}

/// Writes `README.md` into `root` for the dictionary exported into `root/folder`.
///
/// # Errors
/// I/O errors.
pub fn write_card(d: &Dictionary, exported: &Exported, root: &Path, folder: &Path) -> Result<PathBuf> {
    artefact::write(root, "README.md", text(d, exported, folder).as_bytes())?;
    Ok(root.join("README.md"))
}

fn text(d: &Dictionary, exported: &Exported, folder: &Path) -> String {
    let p = &d.provenance;
    let folder = folder.display();
    let host = p.host["hub_id"].as_str().or(p.host["name"].as_str());
    let mut s = String::from("---\n");
    if let Some(id) = p.host["hub_id"].as_str() {
        let _ = writeln!(s, "base_model: {id}");
    }
    let library = match exported.format {
        "saelens" => Some("saelens"),
        "sparsify" => Some("sparsify"),
        _ => None,
    };
    if let Some(library) = library {
        let _ = writeln!(s, "library_name: {library}");
    }
    s.push_str("tags:\n- sparse-autoencoder\n- interpretability\n---\n\n");
    let _ = writeln!(s, "# Sparse autoencoder of {} at `{}`\n", host.unwrap_or("(host not told)"), p.hook);
    let _ = writeln!(
        s,
        "Written by [Lapidary](https://crates.io/crates/lapidary) {} in the format of {}.\n",
        env!("CARGO_PKG_VERSION"),
        exported.format
    );
    s.push_str("| | |\n|---|---|\n");
    let mut row = |what: &str, value: String| {
        let _ = writeln!(s, "| {what} | {value} |");
    };
    row("hook point", format!("`{}`", p.hook));
    row("latents", d.d_sae().to_string());
    row("width", if d.d_in() == d.d_out() { d.d_in().to_string() } else { format!("{} to {}", d.d_in(), d.d_out()) });
    row("codes", format!("`{}`", serde_json::to_string(&d.activation).unwrap_or_default()));
    row("made by", p.made_by.clone());
    if let Some(tokens) = p.notes["tokens"].as_u64() {
        row("training rows", tokens.to_string());
    }
    let corpus = &p.shards["corpus"];
    if let Some(source) = corpus["source"].as_str().or(corpus["builtin"].as_str()) {
        row("corpus", source.to_string());
    }
    if let Some(hash) = p.host["weights_sha256"].as_str() {
        row("host's weights, sha256", format!("`{hash}`"));
    }
    let proof = &exported.proof;
    row("L0", format!("{:.2} on {} rows", proof.l0[1], proof.rows));
    if let Some(fvu) = proof.fvu[1] {
        row("fraction of variance unexplained", format!("{fvu:.4} on the same rows"));
    }
    if !p.config.is_null() {
        let _ = writeln!(s, "\n<details><summary>Training configuration</summary>\n\n```json\n{}\n```\n\n</details>", pretty(&p.config));
    }
    s.push_str("\n## Load\n\n");
    match exported.format {
        "saelens" => {
            let _ = writeln!(s, "```python\nfrom sae_lens import SAE\nsae = SAE.from_pretrained(\"USER/REPO\", \"{folder}\")   # or SAE.load_from_disk(\"{folder}\")\n```");
        }
        "sparsify" => {
            let _ = writeln!(s, "```python\nfrom sparsify import Sae\nsae = Sae.load_from_hub(\"USER/REPO\", hookpoint=\"{folder}\")\n```");
        }
        _ => {
            let _ = writeln!(s, "```sh\nlapidary import --from USER/REPO/{folder} --out dictionary\n```");
        }
    }
    s.push_str("\nRows are the host's own activations, without centring of writing weights or folding of norms.\n");
    s
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}
