//! Hook points: where in a host model an activation is read, spelled as TransformerLens does; Hugging Face module paths are accepted.
//!
//! Not for: what a given host offers (that is `HostModel::hook_points`), nor for the names of ingested vectors, which are free.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// A place in a block, or around the blocks. Declared, and so ordered, as a forward pass reaches them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// Token embedding as it enters the residual stream (without positions), `[d_model]`.
    Embed,
    /// Residual stream entering the block, `[d_model]`.
    ResidPre,
    /// Concatenated head outputs before the output projection, `[n_heads * d_head]`.
    AttnZ,
    /// Output of the attention module before the norm that follows it, `[d_model]`; only in blocks that have such a norm.
    AttnRaw,
    /// Output of attention as it is added to the residual stream, `[d_model]`.
    AttnOut,
    /// Residual stream between attention and MLP, `[d_model]`; absent in parallel blocks.
    ResidMid,
    /// MLP neurons after the non-linearity (gated: gate times up), `[d_mlp]`.
    MlpPost,
    /// Output of the MLP module before the norm that follows it, `[d_model]`; only in blocks that have such a norm.
    MlpRaw,
    /// Output of the MLP as it is added to the residual stream, `[d_model]`.
    MlpOut,
    /// Residual stream leaving the block, `[d_model]`. For the last block this is *before* the final norm.
    ResidPost,
    /// Output of the final norm, `[d_model]`.
    LnFinal,
}

impl Site {
    /// Sites inside a block, in the order a block reaches them.
    pub const IN_BLOCK: [Site; 9] = [
        Site::ResidPre,
        Site::AttnZ,
        Site::AttnRaw,
        Site::AttnOut,
        Site::ResidMid,
        Site::MlpPost,
        Site::MlpRaw,
        Site::MlpOut,
        Site::ResidPost,
    ];

    /// Does this site belong to a block?
    pub fn is_in_block(self) -> bool {
        !matches!(self, Site::Embed | Site::LnFinal)
    }

    fn suffix(self) -> &'static str {
        match self {
            Site::Embed => "hook_embed",
            Site::ResidPre => "hook_resid_pre",
            Site::AttnOut => "hook_attn_out",
            Site::AttnZ => "attn.hook_z",
            Site::AttnRaw => "attn.hook_out",
            Site::MlpRaw => "mlp.hook_out",
            Site::ResidMid => "hook_resid_mid",
            Site::MlpPost => "mlp.hook_post",
            Site::MlpOut => "hook_mlp_out",
            Site::ResidPost => "hook_resid_post",
            Site::LnFinal => "ln_final.hook_normalized",
        }
    }
}

/// A hook point: block and site. `Display` gives the canonical TransformerLens name, `FromStr` accepts it, the short form
/// (`blocks.3.resid_post`) and the Hugging Face module path (`model.layers.3`, `transformer.h.3.mlp`).
///
/// ```
/// use lapidary::HookPoint;
/// let p: HookPoint = "model.layers.3".parse().unwrap();
/// assert_eq!(p.to_string(), "blocks.3.hook_resid_post");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HookPoint {
    /// Block index from 0; 0 for sites outside blocks.
    pub layer: usize,
    /// Place in the block.
    pub site: Site,
}

impl HookPoint {
    /// A site of block `layer`.
    pub fn block(layer: usize, site: Site) -> Self {
        Self { layer, site }
    }

    /// The order in which a forward pass reaches hook points.
    pub fn order(&self) -> (usize, Site) {
        match self.site {
            Site::Embed => (0, Site::Embed),
            Site::LnFinal => (usize::MAX, Site::LnFinal),
            site => (self.layer, site),
        }
    }
}

impl PartialOrd for HookPoint {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for HookPoint {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.site.is_in_block() {
            write!(f, "blocks.{}.{}", self.layer, self.site.suffix())
        } else {
            f.write_str(self.site.suffix())
        }
    }
}

impl FromStr for HookPoint {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        parse(s).ok_or_else(|| {
            Error::request(
                format!("`{s}` is not a hook point"),
                "write it as TransformerLens does (blocks.3.hook_resid_post, hook_embed, ln_final.hook_normalized) or as a Hugging Face \
                 module path (model.layers.3, transformer.h.3.mlp); `lapidary inspect MODEL` lists them",
            )
        })
    }
}

fn parse(s: &str) -> Option<HookPoint> {
    match s {
        "hook_embed" | "embed" | "model.embed_tokens" | "transformer.wte" | "gpt_neox.embed_in" => {
            return Some(HookPoint::block(0, Site::Embed))
        }
        "ln_final.hook_normalized" | "ln_final" | "model.norm" | "transformer.ln_f" | "gpt_neox.final_layer_norm" => {
            return Some(HookPoint::block(0, Site::LnFinal))
        }
        _ => {}
    }
    if let Some(rest) = s.strip_prefix("blocks.") {
        let (layer, site) = rest.split_once('.')?;
        let site = match site {
            "hook_resid_pre" | "resid_pre" => Site::ResidPre,
            "hook_attn_out" | "attn_out" => Site::AttnOut,
            "attn.hook_z" | "attn.z" | "z" => Site::AttnZ,
            "attn.hook_out" | "attn.out" => Site::AttnRaw,
            "mlp.hook_out" | "mlp.out" => Site::MlpRaw,
            "hook_resid_mid" | "resid_mid" => Site::ResidMid,
            "mlp.hook_post" | "mlp.post" => Site::MlpPost,
            "hook_mlp_out" | "mlp_out" => Site::MlpOut,
            "hook_resid_post" | "resid_post" => Site::ResidPost,
            _ => return None,
        };
        return Some(HookPoint::block(layer.parse().ok()?, site));
    }
    let rest = ["model.layers.", "transformer.h.", "gpt_neox.layers."].iter().find_map(|p| s.strip_prefix(p))?;
    let (layer, module) = rest.split_once('.').unwrap_or((rest, ""));
    let site = match module {
        "" => Site::ResidPost,
        "mlp" => Site::MlpOut,
        "self_attn" | "attn" | "attention" => Site::AttnOut,
        _ => return None,
    };
    Some(HookPoint::block(layer.parse().ok()?, site))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        let mut points = vec![HookPoint::block(0, Site::Embed), HookPoint::block(0, Site::LnFinal)];
        points.extend(Site::IN_BLOCK.iter().map(|&site| HookPoint::block(12, site)));
        for p in points {
            assert_eq!(p.to_string().parse::<HookPoint>().unwrap(), p);
        }
    }

    #[test]
    fn hugging_face_paths_are_accepted() {
        for (given, canonical) in [
            ("model.layers.3", "blocks.3.hook_resid_post"),
            ("transformer.h.0.mlp", "blocks.0.hook_mlp_out"),
            ("gpt_neox.layers.5.attention", "blocks.5.hook_attn_out"),
            ("model.norm", "ln_final.hook_normalized"),
            ("blocks.7.resid_mid", "blocks.7.hook_resid_mid"),
        ] {
            assert_eq!(given.parse::<HookPoint>().unwrap().to_string(), canonical);
        }
        assert!("blocks.x.hook_resid_post".parse::<HookPoint>().is_err());
        assert!("layers.3".parse::<HookPoint>().is_err());
    }

    #[test]
    fn order_is_the_forward_order() {
        let embed = HookPoint::block(0, Site::Embed);
        let pre = HookPoint::block(0, Site::ResidPre);
        let post = HookPoint::block(0, Site::ResidPost);
        let last = HookPoint::block(0, Site::LnFinal);
        assert!(Site::IN_BLOCK.windows(2).all(|s| s[0] < s[1]));
        assert!(embed < pre && pre < post && post < HookPoint::block(1, Site::ResidPre) && post < last);
    }
}
