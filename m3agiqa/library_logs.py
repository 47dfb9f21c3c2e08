"""What libraries log for developers only, some of it when they are imported, is kept from users."""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # casts that are meant, faster kernels to be had
logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)  # that layers wait elsewhere, as asked
