"""Efforts: how strongly each example is attacked."""

EFFORTS = {
    "bullet": "robustcords.methods.efforts.bullet:Bullet",
    "curriculum": "robustcords.methods.efforts.curriculum:Curriculum",
    "fat": "robustcords.methods.efforts.fat:FAT",
    "plateau": "robustcords.methods.efforts.plateau:Plateau",
    "ramp": "robustcords.methods.efforts.ramp:Ramp",
    "uniform": "robustcords.methods.efforts.uniform:Uniform",
}
