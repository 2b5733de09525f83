"""How hard each example is attacked."""

EFFORTS = {
    "bullet": "robustcords.methods.efforts.bullet:Bullet",
    "uniform": "robustcords.methods.efforts.uniform:Uniform",
}
