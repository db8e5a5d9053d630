//! Whole steps of the update, against the CPU's.

use candle_core::{Device, Tensor};

use super::super::columns::{ColumnsShape, DeviceColumns};
use super::super::engine::{Buffer, Engine};
use super::super::rows::Kind;
use super::super::update::{Entries, Gathered, Moved, Parameters, Source, StepGrad, Update, UpdateShape};
use super::trial::{assert_close, codes, every_schedule, get, normals, padded, put, ragged, rounded};
use crate::codes::Codes;
use crate::kernels::{self, Adam, Coder, Columns, Moments, SparseGrad, Term};

#[derive(Clone)]
struct Case {
    n: usize,
    d_in: usize,
    d_out: usize,
    d_sae: usize,
    k: usize,
    kind: Kind,
    /// Ends of the prefixes.
    ends: Vec<usize>,
    /// A second list, with this factor on the device.
    aux: Option<f32>,
    /// Does that list come as sums?
    summed: bool,
    segment: usize,
    unit_norm: bool,
    clip: f32,
    centred: bool,
}

impl Case {
    /// TopK as it is trained.
    fn plain(n: usize, d: usize, d_sae: usize, k: usize) -> Self {
        let ends = vec![d_sae];
        Self {
            n,
            d_in: d,
            d_out: d,
            d_sae,
            k,
            kind: Kind::F32,
            ends,
            aux: None,
            summed: false,
            segment: 256,
            unit_norm: true,
            clip: 1.0,
            centred: true,
        }
    }
}

fn tensor(data: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_vec(data.to_vec(), shape, &Device::Cpu).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A matrix as the device holds it, and what that is.
struct Rows {
    exact: Vec<f32>,
    half: Vec<u16>,
}

impl Rows {
    fn new(kind: Kind, data: Vec<f32>) -> Self {
        let (half, exact) = rounded(&data);
        Self { exact: if kind == Kind::F32 { data } else { exact }, half }
    }

    fn put(&self, engine: &dyn Engine, kind: Kind) -> Buffer {
        match kind {
            Kind::F32 => put(engine, &self.exact),
            Kind::Bf16 => put(engine, &self.half),
        }
    }
}

/// A case with its numbers.
struct Setting {
    case: Case,
    codes: Codes,
    aux: Codes,
    x: Rows,
    grads: Rows,
    aux_grad: Rows,
    coder: [Vec<f32>; 4],
    first: [Vec<f32>; 4],
    second: [Vec<f32>; 4],
    silent: Vec<u64>,
    adam: Adam,
}

const SCALE: f32 = 0.02;
const AUX_SCALE: f32 = 0.5;

impl Setting {
    fn new(case: Case) -> Self {
        let Case { n, d_in, d_out, d_sae, k, kind, .. } = case;
        let sizes = [d_sae * d_in, d_sae, d_sae * d_out, d_out];
        let mut coder = sizes.map(|len| normals(len as u64, len, 0.3));
        if case.unit_norm {
            for row in coder[2].chunks_exact_mut(d_out) {
                let norm = row.iter().map(|w| w * w).sum::<f32>().sqrt();
                row.iter_mut().for_each(|w| *w /= norm);
            }
        }
        let adam = Adam { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, step: 7, grad_scale: 1.0 };
        Self {
            codes: codes(11, n, k, d_sae, true),
            aux: codes(12, n, k, d_sae, false),
            x: Rows::new(kind, normals(1, n * d_in, 1.0)),
            grads: Rows::new(kind, normals(2, case.ends.len() * n * d_out, 1.0)),
            aux_grad: Rows::new(kind, normals(3, n * d_out, 1.0)),
            coder,
            first: sizes.map(|len| normals(len as u64 + 1, len, 1e-3)),
            second: sizes.map(|len| normals(len as u64 + 2, len, 1e-3).iter().map(|v| v * v + 1e-8).collect()),
            silent: (0..d_sae as u64).map(|j| j * j).collect(),
            adam,
            case,
        }
    }

    fn of(&self, data: &[Vec<f32>; 4]) -> Coder {
        let Case { d_in, d_out, d_sae, .. } = self.case;
        Coder {
            w_enc: tensor(&data[0], &[d_sae, d_in]),
            b_enc: tensor(&data[1], &[d_sae]),
            w_dec: tensor(&data[2], &[d_sae, d_out]),
            b_dec: tensor(&data[3], &[d_out]),
        }
    }

    /// What the CPU makes of it.
    fn on_cpu(&self) -> Outcome {
        let Case { n, d_in, d_out, aux, unit_norm, clip, centred, .. } = self.case;
        let (coder, moments) = (self.of(&self.coder), Moments { first: self.of(&self.first), second: self.of(&self.second) });
        let columns = Columns::of_codes(&self.codes);
        let grads: Vec<Tensor> = self.grads.exact.chunks_exact(n * d_out).map(|g| tensor(g, &[n, d_out])).collect();
        let mut terms = Vec::new();
        let mut from = 0;
        for (grad, &to) in grads.iter().zip(&self.case.ends) {
            terms.push(Term { scale: SCALE, ..Term::codes(columns.range(from, to), grad.clone()) });
            from = to;
        }
        if let Some(times) = aux {
            let grad = tensor(&self.aux_grad.exact, &[n, d_out]);
            terms.push(Term { scale: AUX_SCALE * times, ..Term::codes(Columns::of_codes(&self.aux), grad) });
        }
        let b_dec = kernels::column_sums(&grads[0], f64::from(SCALE)).unwrap();
        let grad = SparseGrad { x: tensor(&self.x.exact, &[n, d_in]), terms, b_dec, centred, pull: None };
        let measured = kernels::measure(&coder, &grad, unit_norm).unwrap();
        let norm = measured.sq_norm.sqrt();
        let grad_scale = if clip > 0.0 && norm > f64::from(clip) { f64::from(clip) / norm } else { 1.0 };
        kernels::latent_update(&coder, &moments, &grad, &measured, &Adam { grad_scale, ..self.adam }, unit_norm).unwrap();
        let flatten = |c: &Coder| [&c.w_enc, &c.b_enc, &c.w_dec, &c.b_dec].map(flat);
        let silent = self.silent.iter().enumerate().map(|(j, &t)| if columns.count(j) > 0 { 0 } else { t + n as u64 }).collect();
        Outcome {
            norm,
            factor: grad_scale as f32,
            dz: measured.dz.iter().take(self.case.ends.len()).flatten().copied().collect(),
            b_dec: flat(&measured.b_dec),
            coder: flatten(&coder),
            first: flatten(&moments.first),
            second: flatten(&moments.second),
            silent,
            ..Outcome::default()
        }
    }

    /// The second list's sums: segments, sums and biases.
    fn summed(&self) -> (Vec<u32>, Vec<f32>, Vec<f32>) {
        let Case { n, d_in, d_out, d_sae, aux, .. } = self.case;
        let columns = Columns::of_codes(&self.aux);
        let latents: Vec<u32> = (0..d_sae as u32).filter(|&j| columns.count(j as usize) > 0).collect();
        let mut segments = vec![0u32];
        (0..d_sae).for_each(|j| segments.push(segments[j] + u32::from(columns.count(j) > 0)));
        let grad = tensor(&self.aux_grad.exact, &[n, d_out]);
        let term = Term { scale: AUX_SCALE * aux.unwrap_or_default(), ..Term::codes(columns, grad) };
        let sums = kernels::summed(&term, &tensor(&self.x.exact, &[n, d_in]), &tensor(&self.coder[2], &[d_sae, d_out]), &latents).unwrap();
        let rows = sums.w_dec.chunks_exact(d_out).zip(sums.w_enc.chunks_exact(d_in)).flat_map(|(dec, enc)| [dec, enc].concat()).collect();
        (segments, rows, sums.bias)
    }

    fn on_device(&self, engine: &dyn Engine) -> Outcome {
        let Case { n, d_in, d_out, d_sae, k, kind, segment, unit_norm, clip, centred, .. } = self.case;
        let (codes, aux) = (ragged(engine, &self.codes), padded(engine, &self.aux, k));
        let columns = [&codes, &aux].map(|of| {
            let columns = DeviceColumns::new(engine, ColumnsShape { d_sae, n, capacity: of.codes.capacity, segment }).unwrap();
            columns.build(engine, &of.codes).unwrap();
            columns
        });
        let buffers = [&self.coder, &self.first, &self.second].map(|of| of.each_ref().map(|data| put(engine, data)));
        let moved = |i: usize| Moved { at: buffers[0][i].address, first: buffers[1][i].address, second: buffers[2][i].address };
        let shadows = [put(engine, &vec![0u16; d_sae * d_in]), put(engine, &vec![0u16; d_sae * d_out])];
        let (norms, silent) = (put(engine, &vec![0f32; 2 * d_sae]), put(engine, &self.silent));
        let parameters = Parameters {
            w_enc: moved(0),
            b_enc: moved(1),
            w_dec: moved(2),
            b_dec: moved(3),
            half_enc: shadows[0].address,
            half_dec: shadows[1].address,
            norms: norms.address,
            silent: silent.address,
        };
        let shape = UpdateShape { d_sae, d_in, d_out, n, kind, unit_norm };
        let update = Update::new(engine, shape).unwrap();
        let gathered = columns.each_ref().map(|of| Gathered::new(engine, of, d_in + d_out).unwrap());
        let (x, grads, aux_grad) = (self.x.put(engine, kind), self.grads.put(engine, kind), self.aux_grad.put(engine, kind));
        let ends = put(engine, &self.case.ends.iter().map(|&e| e as u32).collect::<Vec<_>>());
        let times = put(engine, &[self.case.aux.unwrap_or_default()]);
        let groups = self.case.ends.len();
        let sums = self.summed();
        let sums = (put(engine, &sums.0), put(engine, &sums.1), put(engine, &sums.2));
        let made = Entries::Sums { segments: sums.0.address, sums: sums.1.address, biases: sums.2.address };
        let grad = StepGrad {
            codes: Source {
                entries: Entries::Columns(&columns[0], &gathered[0]),
                grads: grads.address,
                ends: ends.address,
                groups,
                scale: SCALE,
                times: 0,
            },
            aux: self.case.aux.map(|_| Source {
                entries: if self.case.summed { made } else { Entries::Columns(&columns[1], &gathered[1]) },
                grads: aux_grad.address,
                ends: 0,
                groups: 1,
                scale: AUX_SCALE,
                times: times.address,
            }),
            x: x.address,
            n,
            b_dec: 0,
            centred,
        };
        update.measure(engine, &grad, &parameters, clip).unwrap();
        update.apply(engine, &grad, &parameters, &self.adam).unwrap();
        let sizes = [d_sae * d_in, d_sae, d_sae * d_out, d_out];
        let read = |of: &[Buffer; 4]| [0, 1, 2, 3].map(|i| get::<f32>(engine, &of[i], sizes[i]));
        let control: Vec<f32> = get(engine, &update.control, 2);
        Outcome {
            norm: get::<f64>(engine, &update.norm, 1)[0],
            factor: control[0],
            applied: control[1] == 1.0,
            bad: get::<u32>(engine, &update.bad, 1)[0],
            dz: get(engine, &gathered[0].dz, self.codes.indices.len()),
            parallel: get(engine, &update.parallel, d_sae),
            b_dec: get(engine, &update.b_dec_grad, d_out),
            coder: read(&buffers[0]),
            first: read(&buffers[1]),
            second: read(&buffers[2]),
            shadows: [get(engine, &shadows[0], sizes[0]), get(engine, &shadows[1], sizes[2])],
            norms: get(engine, &norms, 2 * d_sae),
            silent: get(engine, &silent, d_sae),
        }
    }
}

#[derive(Debug, Default)]
struct Outcome {
    norm: f64,
    factor: f32,
    applied: bool,
    bad: u32,
    dz: Vec<f32>,
    parallel: Vec<f32>,
    b_dec: Vec<f32>,
    coder: [Vec<f32>; 4],
    first: [Vec<f32>; 4],
    second: [Vec<f32>; 4],
    shadows: [Vec<u16>; 2],
    norms: Vec<f32>,
    silent: Vec<u64>,
}

/// All bits: a NaN too is the same as itself.
impl PartialEq for Outcome {
    fn eq(&self, other: &Self) -> bool {
        let bits = |o: &Self| {
            let floats = [&o.dz, &o.parallel, &o.b_dec, &o.norms].into_iter().chain(&o.coder).chain(&o.first).chain(&o.second);
            let floats: Vec<u32> = floats.flatten().map(|v| v.to_bits()).collect();
            (o.norm.to_bits(), o.factor.to_bits(), o.applied, o.bad, floats, o.shadows.clone(), o.silent.clone())
        };
        bits(self) == bits(other)
    }
}

fn check(case: Case) {
    let setting = Setting::new(case);
    let case = &setting.case;
    let (want, got) = (setting.on_cpu(), every_schedule(|engine| setting.on_device(engine)));
    assert!(got.applied && got.bad == 0);
    assert!((got.norm - want.norm).abs() <= 1e-5 * want.norm, "norm {} for {}", got.norm, want.norm);
    assert!((got.factor - want.factor).abs() <= 1e-5 * want.factor);
    assert_close("dz", &got.dz, &want.dz, 1e-5);
    assert_close("gradient of b_dec", &got.b_dec, &want.b_dec, 1e-5);
    for (i, name) in ["w_enc", "b_enc", "w_dec", "b_dec"].into_iter().enumerate() {
        assert_close(&format!("first moment of {name}"), &got.first[i], &want.first[i], 1e-5);
        assert_close(&format!("second moment of {name}"), &got.second[i], &want.second[i], 1e-5);
        assert_close(name, &got.coder[i], &want.coder[i], 2e-6);
    }
    assert_eq!(got.silent, want.silent);
    assert_eq!(got.shadows[0], rounded(&got.coder[0]).0);
    assert_eq!(got.shadows[1], rounded(&got.coder[2]).0);
    let norm = |row: &mut dyn Iterator<Item = f64>| row.map(|v| v * v).sum::<f64>().sqrt();
    for (row, of) in got.coder[0].chunks_exact(case.d_in).zip(got.norms.chunks_exact(2)) {
        let kept = rounded(row).1;
        let lengths =
            [norm(&mut kept.iter().map(|&v| v.into())), norm(&mut row.iter().zip(&kept).map(|(&v, &q)| f64::from(v) - f64::from(q)))];
        for (length, bound) in lengths.into_iter().zip(of) {
            assert!(length <= f64::from(*bound) && f64::from(*bound) <= length * (1.0 + 1e-5), "{length} {bound}");
        }
    }
    if case.unit_norm {
        for row in got.coder[2].chunks_exact(case.d_out) {
            assert!((norm(&mut row.iter().map(|&v| v.into())) - 1.0).abs() < 1e-6);
        }
        // What is parallel to the atoms is what the values' gradients say: sum v dv = <dW, W>.
        if case.aux.is_none() {
            let columns = Columns::of_codes(&setting.codes);
            let by_value: f64 = columns.values.iter().zip(&got.dz).map(|(&v, &dz)| f64::from(v) * f64::from(dz)).sum();
            let by_atom: f64 = got.parallel.iter().map(|&p| f64::from(p)).sum();
            let size: f64 = got.parallel.iter().map(|&p| f64::from(p).abs()).sum();
            assert!((by_value - by_atom).abs() <= 1e-5 * size, "{by_value} {by_atom}");
        }
    }
}

#[test]
fn steps_are_those_of_the_cpu_at_every_width() {
    for d in [1, 7, 32, 64, 130, 262, 264] {
        check(Case::plain(12, d, 37, 5));
        check(Case { kind: Kind::Bf16, ..Case::plain(12, d, 37, 5) });
    }
}

#[test]
fn one_row_one_latent() {
    check(Case::plain(1, 8, 1, 1));
}

#[test]
fn many_entries_are_summed_in_segments() {
    for d in [20, 33, 260] {
        check(Case { segment: 4, ..Case::plain(50, d, 23, 6) });
        check(Case { segment: 3, aux: Some(0.5), kind: Kind::Bf16, ..Case::plain(50, d, 23, 6) });
    }
}

#[test]
fn prefixes_teach_the_latents_that_they_hold() {
    check(Case { ends: vec![4, 5, 20, 37], ..Case::plain(20, 24, 37, 6) });
    check(Case { ends: vec![4, 20, 37], segment: 4, aux: Some(0.3), ..Case::plain(20, 24, 37, 6) });
}

#[test]
fn a_second_list_has_a_factor_of_the_device() {
    check(Case { aux: Some(0.7), ..Case::plain(20, 24, 37, 6) });
    check(Case { aux: Some(0.0), kind: Kind::Bf16, ..Case::plain(20, 24, 37, 6) });
}

#[test]
fn a_second_list_may_come_as_sums() {
    check(Case { aux: Some(0.7), summed: true, ..Case::plain(20, 24, 37, 6) });
    check(Case { aux: Some(0.7), summed: true, segment: 4, kind: Kind::Bf16, ..Case::plain(20, 31, 37, 6) });
}

#[test]
fn rules_that_are_off() {
    check(Case { unit_norm: false, ..Case::plain(15, 24, 30, 4) });
    check(Case { clip: 0.0, ..Case::plain(15, 24, 30, 4) });
    check(Case { clip: 1e-3, ..Case::plain(15, 24, 30, 4) });
    check(Case { centred: false, d_in: 12, d_out: 40, ..Case::plain(15, 24, 30, 4) });
    check(Case { centred: false, d_in: 40, d_out: 9, ..Case::plain(15, 24, 30, 4) });
}

#[test]
fn a_gradient_that_is_not_finite_is_counted_and_not_applied() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut setting = Setting::new(Case::plain(9, 16, 20, 4));
        setting.x.exact[5] = bad;
        let got = every_schedule(|engine| setting.on_device(engine));
        assert!(!got.applied && got.bad == 1 && !got.norm.is_finite());
        assert_eq!(got.coder, setting.coder);
        assert_eq!((got.first, got.second, got.silent), (setting.first, setting.second, setting.silent));
    }
}
