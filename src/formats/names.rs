//! Module paths of decoder models, without the host's own prefix, as sparsify and delphi name what they read.

use crate::hook::{HookPoint, Site};

/// `layers.5` -> `blocks.5.hook_resid_post`, `h.0.mlp` -> `blocks.0.hook_mlp_out`; other names stay.
pub(super) fn hook_of(module: &str) -> String {
    for prefix in ["", "model.", "transformer.", "gpt_neox."] {
        if let Ok(point) = format!("{prefix}{module}").parse::<HookPoint>() {
            return point.to_string();
        }
    }
    module.to_string()
}

/// The way back, where there is one.
pub(super) fn module_of(hook: &str) -> Option<String> {
    let point: HookPoint = hook.parse().ok()?;
    let suffix = match point.site {
        Site::ResidPost => "",
        Site::MlpOut => ".mlp",
        _ => return None,
    };
    Some(format!("layers.{}{suffix}", point.layer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_hook_points() {
        for (module, hook) in [("layers.5", "blocks.5.hook_resid_post"), ("h.0.mlp", "blocks.0.hook_mlp_out"), ("mine", "mine")] {
            assert_eq!(hook_of(module), hook);
        }
        assert_eq!(module_of("blocks.5.hook_mlp_out").as_deref(), Some("layers.5.mlp"));
        assert_eq!(hook_of(&module_of("blocks.7.hook_resid_post").unwrap()), "blocks.7.hook_resid_post");
        assert_eq!(module_of("blocks.5.attn.hook_z"), None);
    }
}
