//! The learner beside its kernels: refusals, folding the scale, and what reaches dead atoms.

use super::*;
use crate::kernels::Gradient;
use crate::rng::Rng;

fn rows(n: usize, d: usize) -> Tensor {
    let mut rng = Rng::stream(1, "test", 0);
    Tensor::from_vec((0..n * d).map(|_| rng.normal() as f32).collect::<Vec<_>>(), (n, d), &Device::Cpu).unwrap()
}

fn max_diff(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

fn config(k: usize) -> MpConfig {
    MpConfig { d_sae: 40, k, ..Default::default() }.resolve(8, 1000).unwrap()
}

fn pursuits(step: &Step) -> &PursuitGrad {
    match &step.grad {
        Gradient::Pursuit(grad) => grad,
        Gradient::Sparse(_) => unreachable!("a pursuit has no encoder"),
    }
}

#[test]
fn impossible_settings_name_their_key() {
    let refused = |c: MpConfig| c.resolve(8, 1000).unwrap_err().to_string();
    let error = refused(MpConfig { tied: false, ..Default::default() });
    assert!(error.contains("sae.tied") && error.contains("leave it out"), "{error}");
    assert!(refused(MpConfig { k: 0, ..Default::default() }).contains("sae.k"));
    assert!(refused(MpConfig { tolerance: f32::NAN, ..Default::default() }).contains("sae.tolerance"));
    assert!(refused(MpConfig { tolerance: 1.0, relative: true, ..Default::default() }).contains("sae.tolerance"));
    assert!(refused(MpConfig { revive: -1.0, ..Default::default() }).contains("sae.revive"));
}

#[test]
fn the_loss_is_what_the_dictionary_leaves() {
    let x = rows(50, 8);
    for tolerance in [0.0, 1.0] {
        let mut learner = Mp::new(MpConfig { tolerance, ..config(5) }, &x, 0).unwrap();
        let step = learner.step(&x).unwrap();
        let dictionary = learner.finish(1.0, &x).unwrap();
        let (codes, xhat) = dictionary.reconstruct(&x).unwrap();
        let left = sum_sq(&(&x - &xhat).unwrap()).unwrap();
        assert!((step.sq_error / left - 1.0).abs() < 1e-4 && (step.loss - left / 400.0).abs() < 1e-5);
        assert_eq!(step.n_active, codes.indices.len() as u64);
        // In other units: the same latents, values in those units.
        let scale = 3.5;
        let (scaled, yhat) = learner.finish(scale, &x).unwrap().reconstruct(&(&x / scale).unwrap()).unwrap();
        assert_eq!(scaled.indices, codes.indices);
        assert!(max_diff(&(yhat * scale).unwrap(), &xhat) < 1e-5);
    }
}

#[test]
fn dead_atoms_learn_from_what_is_left() {
    let x = rows(64, 8);
    let mut learner = Mp::new(MpConfig { revive: 0.01, ..config(2) }, &x, 0).unwrap();
    let step = learner.step(&x).unwrap();
    assert!(step.aux_loss.is_none() && pursuits(&step).tapes.len() == 1, "nothing is dead at the start");
    learner.body.silence.tokens = vec![0; 40];
    for j in [7, 11] {
        learner.body.silence.tokens[j] = learner.body.silence.dead_after_tokens;
    }
    let step = learner.step(&x).unwrap();
    let grad = pursuits(&step);
    assert!(step.aux_loss.is_some() && step.loss > step.sq_error / (64.0 * 8.0));
    assert!((0..40).all(|j| (grad.tapes[1].columns.count(j) > 0) == [7, 11].contains(&j)));
    assert_eq!(grad.shared.as_ref().unwrap().0, [7, 11]);

    // The revival term's gradient, part by part, against its formula: -coef mean_rows r for the dead, and -coef mean D_dead / n in r.
    let plain = Mp::new(config(2), &x, 0).unwrap().step(&x).unwrap();
    let (with, without) = (&grad.tapes[0], &pursuits(&plain).tapes[0]);
    let direction = &grad.shared.as_ref().unwrap().1;
    assert!(max_diff(direction, &(with.path.residual.mean(0).unwrap() * (-0.01 / 2.0)).unwrap()) < 1e-8);
    let towards = (learner.body.coder.w_dec.get(7).unwrap() + learner.body.coder.w_dec.get(11).unwrap()).unwrap();
    let want = without.grad.broadcast_sub(&(towards * (0.01 / 2.0 / 64.0)).unwrap()).unwrap();
    assert!(max_diff(&with.grad, &want) < 1e-8);
}
