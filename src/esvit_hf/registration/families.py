"""The networks of this package, by name: nothing is imported."""

__all__ = ["FAMILIES", "network_modules"]

FAMILIES = {"EsvitSwin": "esvit_swin", "EsvitVil": "esvit_vil", "EsvitCvt": "esvit_cvt"}
"""How the classes of each family begin, and the model type that its modules end with."""

_IN_MODELING_FILES = ("Model", "ForImageClassification", "Backbone")


def network_modules() -> dict[str, str]:
    """Return the module of every public class of the networks, by the name of the class."""
    modules = {"EsvitImageProcessor": "esvit_hf.models.image_processing_esvit"}
    for family, model_type in FAMILIES.items():
        modules[f"{family}Config"] = f"esvit_hf.models.configuration_{model_type}"
        for kind in _IN_MODELING_FILES:
            modules[f"{family}{kind}"] = f"esvit_hf.models.modeling_{model_type}"
    return modules
