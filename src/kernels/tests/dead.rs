//! AuxK's selection among few latents, and the sums made of it beforehand.

use super::*;

/// The selection of `latents` alone, as the exact encode makes it.
fn wanted(x: &Tensor, coder: &Coder, latents: &[u32], k: usize) -> Codes {
    let index = Tensor::from_slice(latents, latents.len(), &Device::Cpu).unwrap();
    let (w, b) = (coder.w_enc.index_select(&index, 0).unwrap(), coder.b_enc.index_select(&index, 0).unwrap());
    encode_topk(x, &w, &b, k.min(latents.len()), None).unwrap().to_codes(latents.len()).unwrap()
}

fn coder(rng: &mut Rng, m: usize, d: usize) -> Coder {
    Coder {
        w_enc: random(rng, &[m, d], 0.3),
        b_enc: random(rng, &[m], 0.05),
        w_dec: random(rng, &[m, d], 0.3),
        b_dec: random(rng, &[d], 0.1),
    }
}

/// By row, ascending: latents and values.
fn by_row(columns: &Columns, n: usize) -> Vec<Vec<(u32, f32)>> {
    let codes = columns.to_codes(n);
    (0..n)
        .map(|r| {
            let (indices, values) = codes.row(r);
            let mut row: Vec<(u32, f32)> = indices.iter().copied().zip(values.iter().copied()).collect();
            row.sort_unstable_by_key(|e| e.0);
            row
        })
        .collect()
}

#[test]
fn the_set_is_the_exact_one_and_decodes_onto_the_error() {
    let mut rng = Rng::stream(3, "test", 0);
    let (n, m, d) = (150, 300, 24);
    let mut coder = coder(&mut rng, m, d);
    // Twins and near twins: the k-th place is often shared, or decided by the last bit.
    let mut w: Vec<Vec<f32>> = coder.w_enc.to_vec2().unwrap();
    let mut b: Vec<f32> = coder.b_enc.to_vec1().unwrap();
    for j in (3..m).step_by(6) {
        (w[j], b[j]) = (w[j - 3].clone(), b[j - 3]);
        if j % 12 == 3 {
            w[j][0] = w[j][0].next_up();
        }
    }
    coder.w_enc = Tensor::new(w, &Device::Cpu).unwrap();
    coder.b_enc = Tensor::new(b, &Device::Cpu).unwrap();
    let mut x: Vec<Vec<f32>> = random(&mut rng, &[n, d], 1.0).to_vec2().unwrap();
    x[7] = vec![0.0; d];
    x[8][3] = f32::NAN;
    x[9][3] = f32::INFINITY;
    x[10].iter_mut().for_each(|v| *v *= 1e20);
    let x = Tensor::new(x, &Device::Cpu).unwrap();
    let error = random(&mut rng, &[n, d], 1.0);
    let latents: Vec<u32> = (0..m as u32).step_by(3).collect();
    for k in [1, 7, 40, 99, 100, 500] {
        let (columns, sum, square) = dead_topk(&x, &error, &coder, &latents, k).unwrap();
        let want = wanted(&x, &coder, &latents, k);
        let got = by_row(&columns, n);
        for (r, row) in got.iter().enumerate() {
            let (indices, values) = want.row(r);
            let mut want: Vec<(u32, f32)> = indices.iter().map(|&i| latents[i as usize]).zip(values.iter().copied()).collect();
            want.sort_unstable_by_key(|e| e.0);
            let set = |row: &[(u32, f32)]| row.iter().map(|e| e.0).collect::<Vec<_>>();
            assert_eq!(set(row), set(&want), "row {r}, k {k}");
            let largest = want.iter().fold(0f32, |most, e| most.max(e.1));
            for (got, want) in row.iter().zip(&want) {
                assert!(got.1 == want.1 || (got.1 - want.1).abs() < 1e-5 * largest, "{got:?} {want:?}");
            }
        }
        // In latent order the kernel's sums are those of the plain decode.
        let mut codes = Codes::new(m);
        got.iter().for_each(|row| codes.push_row(row.iter().copied()));
        let (decoded, decoded_square) = decode_codes_onto(&codes, &coder.w_dec, &error, 1.0).unwrap();
        let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(&sum), bits(&decoded));
        assert!(square.is_nan() == decoded_square.is_nan() && (square.is_nan() || square == decoded_square));
    }
}

#[test]
fn sums_made_beforehand_change_no_gradient() {
    let mut rng = Rng::stream(4, "test", 0);
    let (n, m, d) = (200, 40, 17);
    let coder = coder(&mut rng, m, d);
    let (x, error) = (random(&mut rng, &[n, d], 1.0), random(&mut rng, &[n, d], 1.0));
    let latents: Vec<u32> = (1..m as u32).step_by(2).collect();
    let (columns, error, _) = dead_topk(&x, &error, &coder, &latents, 9).unwrap();
    let plain = Term { scale: 0.37, ..Term::codes(columns, error) };
    let made = Term { summed: Some(summed(&plain, &x, &coder.w_dec, &latents).unwrap()), ..plain.clone() };
    let b_dec = coder.b_dec.zeros_like().unwrap();
    let [plain, made] =
        [plain, made].map(|term| SparseGrad { x: x.clone(), terms: vec![term], b_dec: b_dec.clone(), centred: true, pull: None });
    for unit_norm in [false, true] {
        let [a, b] = [&plain, &made].map(|grad| dense_gradient(&coder, grad, unit_norm));
        for (a, b) in [(a.w_enc, b.w_enc), (a.b_enc, b.b_enc), (a.w_dec, b.w_dec), (a.b_dec, b.b_dec)] {
            let far = |t: Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
            assert!(far((&a - b).unwrap()) <= 1e-5 * far(a));
        }
    }
}
