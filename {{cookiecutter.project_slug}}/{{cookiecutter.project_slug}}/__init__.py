import warnings

from lightning.pytorch import disable_possible_user_warnings

# Lightning's guesses, such as that data in memory should have more workers.
disable_possible_user_warnings()
# Lightning 2.6 calls what torch has deprecated since; it is not for the user to mend.
warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
