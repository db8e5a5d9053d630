//! Inline forms of latents: rows of the feature table, examples with their tokens highlighted, concept recovery, traces, steered texts.

use super::table::escape;
use super::{shown, Html, Show, Table};
use crate::features::{Example, Examples, Feature, FeatureTable};
use crate::score::concepts::Recovery;
use crate::score::figure;
use crate::steer::{Sample, Shift, Steered};
use crate::trace::Trace;

/// Latents of a feature table that is shown whole.
const SHOWN: usize = 12;
/// Output tokens in a line.
const TOKENS: usize = 5;
/// Latents of a token in a trace.
const ACTIVE: usize = 4;

/// Text on an amber ground, the fuller the larger `share` (0 to 1); `note` shows on hovering.
fn lit(text: &str, share: f64, note: &str, is_peak: bool) -> String {
    let visible = escape(text).replace('\n', "\u{23ce}");
    if share <= 0.0 {
        return visible;
    }
    let opacity = 0.15 + 0.65 * share.clamp(0.0, 1.0);
    let inner = if is_peak { format!("<b>{visible}</b>") } else { visible };
    format!("<span style=\"background-color:rgba(230,159,0,{opacity:.2})\" title=\"{}\">{inner}</span>", escape(note))
}

/// A line per latent: how often and how strongly it fires, what it is called, which tokens its atom raises.
pub fn features<'a>(rows: impl IntoIterator<Item = &'a Feature>) -> Html {
    Table::new("", &["latent", "density", "mean", "max", "label", "concept", "F1", "raises"])
        .rows(rows, |f| {
            let some = |v: Option<f64>| v.map_or("–".into(), |v| format!("{v:.2}"));
            [
                f.latent.to_string(),
                figure(f.density),
                some(f.mean_active),
                some(f.max.map(f64::from)),
                f.label.clone().unwrap_or_default(),
                f.concept.clone().unwrap_or_default(),
                some(f.concept_f1),
                f.top_tokens.iter().take(TOKENS).map(|t| t.trim().to_string()).collect::<Vec<_>>().join(" "),
            ]
        })
        .html()
}

/// Contexts of a latent; the fuller a token's ground, the more it fires there, and the token that was chosen stands in bold.
pub fn examples<'a>(rows: impl IntoIterator<Item = &'a Example>) -> Html {
    let rows: Vec<&Example> = rows.into_iter().collect();
    let most = rows.iter().flat_map(|e| &e.values).copied().fold(0f32, f32::max);
    let mut table = Table::new("", &["group", "value", "context"]);
    for example in rows {
        let group = example.quantile.map_or_else(|| example.group.clone(), |band| format!("{} {band}", example.group));
        let tokens = || example.tokens.iter().zip(&example.values).enumerate();
        let html: String = tokens()
            .map(|(i, (token, &value))| {
                lit(token, f64::from(value / most.max(f32::MIN_POSITIVE)), &figure(f64::from(value)), i == example.peak as usize)
            })
            .collect();
        let text: String =
            tokens().map(|(i, (token, _))| if i == example.peak as usize { format!("«{token}»") } else { token.clone() }).collect();
        let plain = |text: String| Html::safe(escape(&text), text);
        table = table.fragments(vec![plain(group), plain(format!("{:.2}", example.value)), Html::safe(html, text)]);
    }
    table.html()
}

impl Show for Feature {
    fn show(&self) -> Html {
        features([self])
    }
}

impl Show for FeatureTable {
    fn show(&self) -> Html {
        let alive = self.features.iter().filter(|f| !f.dead).count();
        let told = format!(
            "{} of {} latents fire on {} rows; the first {SHOWN}:",
            alive,
            self.features.len(),
            crate::score::thousands(self.info.rows)
        );
        Html::paragraph(&told).then(&features(self.features.iter().take(SHOWN)))
    }
}

impl Show for Example {
    fn show(&self) -> Html {
        examples([self])
    }
}

impl Show for Examples {
    fn show(&self) -> Html {
        examples(self.0.iter().take(SHOWN))
    }
}

impl Show for Recovery {
    fn show(&self) -> Html {
        Table::new(&self.features, &["class", "concepts", "mean F1", "median F1", "above 0.7"])
            .rows(&self.classes, |c| {
                let f1 = |v: f64| format!("{v:.3}");
                [c.class.clone(), c.concepts.to_string(), f1(c.mean_f1), f1(c.median_f1), c.recovered.to_string()]
            })
            .html()
    }
}

impl Show for Trace {
    fn show(&self) -> Html {
        let caption = format!("{}, FVU {} over this text", self.hook, self.fvu.map_or("undefined".into(), figure));
        Table::new(&caption, &["position", "token", "unexplained", "strongest latents"])
            .rows(&self.tokens, |t| {
                let active = t.active.iter().take(ACTIVE).map(|a| format!("{}:{:.2}", a.latent, a.value)).collect::<Vec<_>>().join("  ");
                [
                    t.position.to_string(),
                    t.token.clone(),
                    t.nmse.map_or("–".into(), |e| format!("{:.1} %", 100.0 * e)),
                    t.masked.map_or(active, |rule| format!("(masked: {rule})")),
                ]
            })
            .html()
    }
}

/// The steered text, a token's ground the fuller the more the edits changed what could have stood there (KL, nats).
pub fn kl(sample: &Sample) -> Html {
    let most = sample.tokens.iter().map(|t| t.kl).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let html: Vec<String> = sample.tokens.iter().map(|t| lit(&t.token, t.kl / most, &format!("KL {} nats", figure(t.kl)), false)).collect();
    Html::safe(format!("<p>{}</p>\n", html.join(" ")), format!("{}\n", sample.steered))
}

fn shifts(rows: &[Shift]) -> Html {
    Table::new("the next token after the prompt: whose probability changed most", &["token", "before", "after", "change"])
        .rows(rows, |s| [s.token.clone(), format!("{:.4}", s.before), format!("{:.4}", s.after), format!("{:+.4}", s.after - s.before)])
        .html()
}

impl Show for Steered {
    fn show(&self) -> Html {
        let edits = self.edits.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let head = Html::paragraph(&format!("{edits} at {}, after \u{201c}{}\u{201d}", self.hook, self.text));
        let mut texts = Table::new("", &["unsteered", "steered (coloured by KL)", "mean KL, nats"]);
        for sample in &self.samples {
            let plain = |text: String| Html::safe(escape(&text), text);
            texts = texts.fragments(vec![plain(sample.unsteered.clone()), kl(sample), plain(format!("{:.3}", sample.mean_kl))]);
        }
        head.then(&texts.html()).then(&shifts(&self.shifts))
    }
}

shown!(Feature, FeatureTable, Example, Examples, Recovery, Trace, Sample, Steered);

impl Show for Sample {
    fn show(&self) -> Html {
        kl(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(tokens: &[&str], values: &[f32], peak: u32) -> Example {
        Example {
            latent: 3,
            group: "top".into(),
            rank: 0,
            quantile: None,
            doc_id: 1,
            position: 4,
            value: values[peak as usize],
            peak,
            tokens: tokens.iter().map(|t| (*t).to_string()).collect(),
            token_ids: vec![0; tokens.len()],
            positions: (0..tokens.len() as u32).collect(),
            values: values.to_vec(),
        }
    }

    #[test]
    fn tokens_are_lit_by_their_value_and_escaped() {
        let shown = examples(&[example(&["<script>", " cat\n", " sat"], &[0.8, 2.0, 0.0], 1)]);
        let html = shown.html();
        assert!(!html.contains("<script>") && html.contains("&lt;script&gt;"), "{html}");
        assert!(html.contains("rgba(230,159,0,0.80)\" title=\"2\"><b> cat\u{23ce}</b></span> sat"), "{html}");
        assert!(html.contains("rgba(230,159,0,0.41)"), "two fifths of the largest value: {html}");
        assert!(shown.text().contains("« cat\u{23ce}» sat"), "{}", shown.text());
    }

    #[test]
    fn a_dead_latent_has_no_figures() {
        let text = features(&[Feature { latent: 7, dead: true, ..Feature::default() }]).text().to_string();
        assert!(text.contains('7') && text.contains('–'), "{text}");
    }
}
